import pytest
import torch

from serve_app.models.tokenizers.clip import END, START, token_ids
from serve_app.models.tokenizers.prompt import chunks, empty_chunk, weighted


def none(_name):
    return None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("a (red:1.3) fox", [("a ", 1.0), ("red", 1.3), (" fox", 1.0)]),
        ("(a)", [("a", 1.1)]),
        ("((a))", [("a", 1.1 * 1.1)]),
        ("((a:0.5) b)", [("a", 0.5), (" b", 1.1)]),
        ("(a (b:2) c:0.8)", [("a ", 0.8), ("b", 2.0), (" c", 0.8)]),
        (r"a\(b\) (c\):1.5)", [("a(b) ", 1.0), ("c)", 1.5)]),
        ("[a]", [("[a]", 1.0)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(:1.3)", [(":1.3", 1.1)]),
        ("(a:b:1.2)", [("a:b", 1.2)]),
        ("(a", [("(a", 1.0)]),
        ("((a)", [("(a", 1.1)]),
        ("a) (b:1.2)", [("a) (b:1.2)", 1.0)]),
        ("", []),
        ("()", []),
    ],
)
def test_a_text_is_cut_into_weighted_pieces(text, expected):
    assert weighted(text) == expected


def test_brackets_may_nest_as_deep_as_the_text_is_long():
    deep = 100_000
    assert weighted("(" * deep + "a" + ":2)" * deep + " b") == [("a", 2.0), (" b", 1.0)]
    [(letters, weight)] = weighted("(" * deep)
    assert (len(letters), weight) == (deep, 1.0)


def test_a_short_text_is_one_chunk_padded_with_the_end_token():
    (chunk,) = chunks("a photo of a cat", 77, none)
    assert [token for token, _ in chunk] == [START, 320, 1125, 539, 320, 2368, *[END] * 71]
    assert {weight for _, weight in chunk} == {1.0}


def test_the_empty_text_is_the_empty_chunk():
    assert chunks("", 77, none) == [empty_chunk(77)]


def test_only_the_tokens_of_a_weighted_piece_carry_its_weight():
    (chunk,) = chunks("a (red:1.3) fox", 77, none)
    assert [weight for _, weight in chunk[:5]] == [1.0, 1.0, 1.3, 1.0, 1.0]


def test_a_long_run_is_split_where_the_chunk_ends():
    first, second = chunks("cat " * 80, 77, none)
    (cat,) = token_ids("cat")
    assert [token for token, _ in first] == [START, *[cat] * 75, END]
    assert [token for token, _ in second] == [START, *[cat] * 5, *[END] * 71]


def test_a_run_of_fewer_than_eight_tokens_moves_whole_to_the_next_chunk():
    first, second = chunks("cat " * 70 + "(" + "dog " * 7 + ":1.5)", 77, none)
    assert [weight for _, weight in first] == [1.0] * 77
    assert first[71:] == [(END, 1.0)] * 6
    assert [weight for _, weight in second[:9]] == [1.0, *[1.5] * 7, 1.0]


def test_a_run_that_just_fits_starts_no_new_chunk():
    assert len(chunks("cat " * 75, 77, none)) == 1


class Named:
    """Embeddings by name, remembering what was asked."""

    def __init__(self, **vectors):
        self.vectors = vectors
        self.asked = []

    def __call__(self, name):
        self.asked.append(name)
        return self.vectors.get(name)


def test_an_embedding_takes_the_place_of_its_name_with_the_weight_around_it():
    vectors = [torch.ones(4), torch.zeros(4)]
    (chunk,) = chunks("a (embedding:style:1.2) fox", 77, Named(style=vectors))
    assert chunk[2][0] is vectors[0]
    assert chunk[3][0] is vectors[1]
    assert [weight for _, weight in chunk[:5]] == [1.0, 1.0, 1.2, 1.2, 1.0]


def test_the_words_after_an_embedding_are_text_again():
    vectors = [torch.ones(4)]
    (chunk,) = chunks("embedding:style red fox embedding:style", 77, Named(style=vectors))
    assert [token for token, _ in chunk[2:4]] == token_ids("red fox")
    assert chunk[1][0] is chunk[4][0] is vectors[0]


def test_a_comma_after_an_embeddings_name_is_no_part_of_it():
    lookup = Named(style=[torch.ones(4)])
    (chunk,) = chunks("embedding:style, fox", 77, lookup)
    assert lookup.asked == ["style,", "style"]
    assert [token for token, _ in chunk[2:4]] == token_ids(", fox")


def test_an_unknown_embedding_is_left_out():
    assert chunks("a embedding:missing fox", 77, none) == chunks("a fox", 77, none)


def test_a_word_that_only_contains_embedding_is_text():
    assert chunks("word_embedding:a", 77, Named()) != chunks("word_", 77, none)
