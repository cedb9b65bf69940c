"""The oracle is transformers' CLIPTextModel called as its authors do, on the same random weights."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from serve_app.errors import ModelFileError, NodeError
from serve_app.models.families import ClipText
from serve_app.models.families.text.clip import TextEncoder
from serve_app.models.families.unet.sdxl import DualTextEncoder
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.kernels.packing import move_to
from serve_app.models.text_encoder import Clip
from serve_app.models.tokenizers.clip import END, START, token_ids
from serve_app.models.tokenizers.lexicon import Lexicon
from serve_app.store.models.catalog import Catalog
from serve_app.values import TokenizedText
from tests.unit.models.sample import random_tensors

ARCHITECTURE = ClipText(layers=3, width=64, hidden_width=128, positions=77)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    save_file(random_tensors(ARCHITECTURE, torch.float32), path)
    return path


def read(checkpoint, vectors=lambda name, width, kind: None):
    family, network = Checkpoint(checkpoint).load("clip")
    assert isinstance(family, ClipText)
    move_to(network, CPU, torch.float32)
    return TextEncoder(family, network, vectors)


@pytest.fixture(scope="module")
def encoder(checkpoint):
    with torch.inference_mode():
        yield read(checkpoint)


@pytest.fixture(scope="module")
def oracle(checkpoint):
    from transformers import CLIPTextConfig, CLIPTextModel

    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=1,
            eos_token_id=49407,
        )
    )
    prefix = "cond_stage_model.transformer.text_model."
    weights = {name.removeprefix(prefix): tensor for name, tensor in load_file(checkpoint).items()}
    getattr(model, "text_model", model).load_state_dict(weights)
    return model.eval()


def ids(text):
    inside = token_ids(text)
    return torch.tensor([[49406, *inside, *[49407] * (76 - len(inside))]])


def only(conditionings):
    (((cond, options),),) = conditionings
    return cond, options["pooled_output"]


def test_a_plain_text_is_encoded_as_by_transformers(encoder, oracle):
    expected = oracle(ids("a red fox"))
    cond, pooled = only(encoder.encode(["a red fox"]))
    torch.testing.assert_close(cond, expected.last_hidden_state, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pooled, expected.pooler_output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stop_at", [-2, -3])
def test_a_stop_takes_that_layers_output_through_the_final_norm(encoder, oracle, stop_at):
    hidden = oracle(ids("a red fox"), output_hidden_states=True).hidden_states[1:]
    expected = getattr(oracle, "text_model", oracle).final_layer_norm(hidden[stop_at])
    torch.testing.assert_close(only(Clip(encoder, stop_at).encode(["a red fox"]))[0], expected, rtol=1e-5, atol=1e-5)


def test_a_stop_from_0_on_counts_layers_from_the_first(encoder):
    for stop_at in (0, 1, 2):
        assert torch.equal(only(encoder.encode(["a fox"], stop_at))[0], only(encoder.encode(["a fox"], stop_at - 3))[0])


def test_a_stop_beyond_the_first_layer_means_the_last(encoder):
    assert torch.equal(only(encoder.encode(["a fox"], -4))[0], only(encoder.encode(["a fox"], -1))[0])


def test_a_weight_moves_its_tokens_along_the_line_from_the_empty_text(encoder):
    plain, empty = (only(encoder.encode([text]))[0] for text in ("a red fox", ""))
    weighted, pooled = only(encoder.encode(["a (red:1.5) fox"]))
    expected = plain.clone()
    expected[0, 2] = empty[0, 2] + 1.5 * (plain[0, 2] - empty[0, 2])
    torch.testing.assert_close(weighted, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pooled, only(encoder.encode(["a red fox"]))[1], rtol=1e-5, atol=1e-5)


def test_a_weight_of_one_changes_nothing(encoder):
    torch.testing.assert_close(only(encoder.encode(["a (red:1.0) fox"])), only(encoder.encode(["a red fox"])))


def test_texts_encoded_together_are_what_each_is_alone(encoder):
    texts = ["a fox", "(word:1.2) " * 60, "", "a (red:0.3) hen"]
    for text, together in zip(texts, encoder.encode(texts), strict=True):
        torch.testing.assert_close(only([together]), only(encoder.encode([text])), rtol=1e-5, atol=1e-5)


def test_a_text_of_two_chunks_is_two_encodings_in_a_row_with_the_first_ones_pooled(encoder):
    long, pooled = only(encoder.encode(["cat " * 80]))
    (first, first_pooled), (second, _) = (only(encoder.encode(["cat " * n])) for n in (75, 5))
    torch.testing.assert_close(long, torch.cat([first, second], dim=1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pooled, first_pooled, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("text", ["a cat", "a (black cat:1.4) on a (((roof)))", "word " * 100])
def test_its_own_tokens_are_encoded_as_the_text(encoder, text):
    tokens = encoder.tokens(text)
    [[(expected, options)]] = encoder.encode([text])
    given = TokenizedText({key: [[pair[:2] for pair in chunk] for chunk in chunks] for key, chunks in tokens.items()})
    [[(cond, of_tokens)]] = encoder.encode([given])
    assert torch.equal(cond, expected)
    assert torch.equal(of_tokens["pooled_output"], options["pooled_output"])


def test_tokens_know_which_part_of_the_text_they_are_of(encoder):
    [chunk] = encoder.tokens("(red:1.2) hill")["l"]
    red, hill = token_ids("red"), token_ids(" hill")
    pairs = [(red[0], 1.2, 1), (hill[0], 1.0, 2)]
    assert chunk[:4] == [(START, 1.0, 0), *pairs, (END, 1.0, 0)]
    assert len(chunk) == 77
    assert set(chunk[4:]) == {(END, 1.0, 0)}


@pytest.mark.parametrize(
    ("chunks", "said"),
    [
        ({"l": [[(START, 1.0)] * 5]}, "5 tokens at once for CLIP-L, which reads 77"),
        ({"l": [[(START, 1.0)] * 76 + [(99999, 1.0)]]}, "token 99999 is none of CLIP-L's 49,408"),
        ({"g": [[(START, 1.0)] * 77]}, "of the encoders g that there are tokens for, none is l"),
    ],
)
def test_tokens_that_it_cannot_read_are_refused(encoder, chunks, said):
    with pytest.raises(NodeError, match=said):
        encoder.encode([TokenizedText(chunks)])


def test_sdxl_reads_tokens_for_both_encoders_or_for_one(encoder, checkpoint):
    both = DualTextEncoder(encoder, TextEncoder(replace(ARCHITECTURE, kind="g"), encoder.network, lambda *_: None))
    tokens = {key: [[p[:2] for p in chunk] for chunk in chunks] for key, chunks in both.tokens("a hill").items()}
    [text, given, alone] = both.encode(["a hill", TokenizedText(tokens), TokenizedText({"l": tokens["l"]})])
    assert torch.equal(given[0][0], text[0][0])
    assert torch.equal(alone[0][0], text[0][0][..., :64])
    [together] = both.encode([TokenizedText(tokens)])
    assert torch.equal(together[0][0], text[0][0])


@pytest.fixture
def embeddings(tmp_path):
    (tmp_path / "embeddings" / "sub").mkdir(parents=True)
    return tmp_path / "embeddings", Lexicon(Catalog(tmp_path))


@pytest.mark.parametrize("key", ["emb_params", "clip_l", "<anything>"])
def test_an_embedding_of_either_layout_is_found_with_and_without_its_suffix(embeddings, key):
    folder, found = embeddings
    vectors = torch.randn(2, 64)
    save_file({key: vectors}, folder / "sub" / "style.safetensors")
    assert torch.equal(found.vectors("sub/style", 64), vectors)
    assert torch.equal(found.vectors("sub/style.safetensors", 64), vectors)


def test_an_embedding_for_several_encoders_gives_clip_ls_vectors(embeddings):
    folder, found = embeddings
    save_file({"clip_g": torch.zeros(1, 1280), "clip_l": torch.ones(1, 64)}, folder / "both.safetensors")
    assert torch.equal(found.vectors("both", 64), torch.ones(1, 64))


def test_a_single_vector_is_one_token(embeddings):
    folder, found = embeddings
    save_file({"emb_params": torch.ones(64)}, folder / "one.safetensors")
    assert found.vectors("one", 64).shape == (1, 64)


def test_a_missing_or_misfitting_embedding_gives_no_vectors(embeddings):
    folder, found = embeddings
    save_file({"emb_params": torch.ones(1, 1024)}, folder / "wide.safetensors")
    assert found.vectors("missing", 64) is None
    assert found.vectors("../wide", 64) is None
    assert found.vectors("wide", 64) is None


def test_a_damaged_embedding_is_an_error(embeddings):
    folder, found = embeddings
    (folder / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelFileError, match=r"bad\.safetensors"):
        found.vectors("bad", 64)


def test_an_embedding_equal_to_a_tokens_own_row_encodes_as_that_token(checkpoint, encoder):
    table = load_file(checkpoint)["cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"]
    (red,) = token_ids("red")
    with_vectors = read(
        checkpoint,
        lambda name, width, key: table[red][None] if (name, width, key) == ("red", 64, "clip_l") else None,
    )
    torch.testing.assert_close(
        only(with_vectors.encode(["a (embedding:red:1.3) fox"])), only(encoder.encode(["a (red:1.3) fox"]))
    )
