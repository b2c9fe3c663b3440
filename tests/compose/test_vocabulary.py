"""Vocabularies matched by their tokens: real tokenizers' files, unions, padding, and the tables that are gathered."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from graftwork.compose.recipe import TokenizerPlan, TokenSource
from graftwork.compose.tokenizer_files import NewToken, Vocabulary, extended_files, read_vocabulary
from graftwork.compose.vocabulary import Place, VocabularyPlan, compare, plan_vocabulary
from graftwork.errors import MissingExtra, RecipeError, VocabularyMismatch
from tests.generators.tokenizers import word_level

tokenizers = pytest.importorskip("tokenizers", reason="the extra hf brings it")


def reading(files: Mapping[str, bytes]) -> Vocabulary:
    found = read_vocabulary(files.get, "model")
    assert found is not None
    return found


# ---- reading


def test_a_tokenizer_json_of_every_kind() -> None:
    found = reading({"tokenizer.json": word_level(["the", "cat"])})
    assert found.tokens == {"[UNK]": 0, "the": 1, "cat": 2}
    assert (found.kind, found.end, found.special) == ("WordLevel", 3, {"[UNK]"})
    unigram = tokenizers.Tokenizer(
        tokenizers.models.Unigram([("<unk>", 0.0), ("▁a", -1.0), ("b", -2.0)], unk_id=0)
    )
    assert reading({"tokenizer.json": unigram.to_str().encode()}).tokens == {"<unk>": 0, "▁a": 1, "b": 2}
    pairs = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    pairs.add_tokens([tokenizers.AddedToken("<x>", lstrip=True)])
    found = reading({"tokenizer.json": pairs.to_str().encode()})
    assert found.tokens == {"a": 0, "b": 1, "ab": 2, "<x>": 3}
    assert found.added["<x>"]["lstrip"] is True
    assert found.special == frozenset()


def test_the_tokenizer_of_a_real_model() -> None:
    from bench.models import minilm

    try:
        folder = minilm()
    except MissingExtra:
        pytest.skip("the package with the model's weights is not installed")
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    found = reading(files)
    made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert found.tokens == made.get_vocab(with_added_tokens=True)
    assert found.special == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    slow = reading({"vocab.txt": files["vocab.txt"]})
    assert compare(slow, found).same


def test_files_of_slow_tokenizers() -> None:
    assert reading({"vocab.txt": b"[PAD]\r\nthe\n##s\n"}).tokens == {"[PAD]": 0, "the": 1, "##s": 2}
    config = {"added_tokens_decoder": {"7": {"content": "<x>", "special": True, "__type": "AddedToken"}}}
    found = reading({
        "vocab.json": b'{"a": 0, "b": 1}', "merges.txt": b"", "added_tokens.json": b'{"<y>": 3}',
        "tokenizer_config.json": json.dumps(config).encode(),
    })  # fmt: skip
    assert found.tokens == {"a": 0, "b": 1, "<y>": 3, "<x>": 7}
    assert found.special == {"<x>"}
    pieces = [b"<unk>", "▁the".encode(), b"s"]
    message = (
        b"".join(bytes([10, len(p) + 7, 10, len(p)]) + p + b"\x15\x00\x00\x80\xbf" for p in pieces)
        + b"\x12\x02\x08\x01"
    )
    assert reading({"tokenizer.model": message}).tokens == {"<unk>": 0, "▁the": 1, "s": 2}
    assert read_vocabulary({"README.md": b""}.get, "model") is None


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"tokenizer.json": b"{"}, "not valid JSON"),
        ({"tokenizer.json": b"[]"}, "no JSON object"),
        ({"tokenizer.json": b"\xff{}"}, "not UTF-8"),
        ({"tokenizer.json": b"[" * 100_000}, "not valid JSON"),
        ({"tokenizer.json": b"{}"}, "has no vocabulary"),
        ({"tokenizer.json": b'{"model": {"vocab": {"a": -1}}}'}, "a token or its id is malformed"),
        ({"tokenizer.json": b'{"model": {"vocab": {"a": 1.5}}}'}, "a token or its id is malformed"),
        ({"tokenizer.json": b'{"model": {"vocab": [[3, 0.5]]}}'}, "a token or its id is malformed"),
        ({"tokenizer.json": b'{"model": {"vocab": {"a": 1, "b": 1}}}'}, "two tokens have one id"),
        ({"tokenizer.json": b'{"model": {"vocab": {}}, "added_tokens": [3]}'}, "an added token is malformed"),
        ({"vocab.json": b'["a"', "merges.txt": b""}, "not valid JSON"),
        (
            {"vocab.txt": b"a\nb", "tokenizer_config.json": b'{"added_tokens_decoder": {"x": {}}}'},
            "added token is malformed",
        ),
        ({"tokenizer.model": b"\x0a\xff"}, "SentencePiece model is malformed"),
        ({"tokenizer.model": b"\x0b"}, "SentencePiece model is malformed"),
        (
            {"tokenizer.model": b"", "tokenizer_config.json": b'{"tokenizer_class": "XLMRobertaTokenizer"}'},
            "not its pieces",
        ),
        ({"tekken.json": b"{}"}, "of this kind is not read"),
    ],
)
def test_malformed_files_are_refused(files: dict[str, bytes], said: str) -> None:
    with pytest.raises(VocabularyMismatch, match=said):
        read_vocabulary(files.get, "model")


def test_the_difference_of_two() -> None:
    one = reading({"tokenizer.json": word_level(["the", "cat", "dog"])})
    other = reading({"tokenizer.json": word_level(["the", "dog", "le"])})
    found = compare(one, other)
    assert found == (["cat"], ["le"], ["dog"])
    assert not found.same
    assert compare(one, one).same


# ---- planning


def vocabulary(words: list[str]) -> Vocabulary:
    return reading({"tokenizer.json": word_level(words)})


def planned(
    words: list[list[str]], plan: TokenizerPlan, rows: list[int] | None = None, base: int = 0
) -> VocabularyPlan:
    counts = rows or [len(mine) + 1 for mine in words]
    return plan_vocabulary(
        [vocabulary(mine) for mine in words], counts, ["a", "b", "c"][: len(words)], base=base, plan=plan
    )


def test_equal_vocabularies_are_the_identity() -> None:
    plan = planned([["x", "y"], ["x", "y"]], TokenizerPlan("union"))
    assert plan.is_identity(0)
    assert plan.is_identity(1)
    assert (plan.size, list(plan.new), list(plan.notes)) == (3, [], [])


def test_a_union_keeps_the_bases_ids_and_does_not_depend_on_the_order() -> None:
    words = [["x", "y"], ["y", "w", "v"], ["u", "x", "v"]]
    plan = planned(words, TokenizerPlan("union"))
    assert [(row.token, row.number) for row in plan.new] == [
        ("u", 3),
        ("w", 4),
        ("v", 5),
    ]  # by least id, then string
    again = planned([words[2], words[0], words[1]], TokenizerPlan("union"), base=1)
    assert list(again.new) == list(plan.new)
    assert plan.origins[0] == {3: (Place(2, 1),), 4: (Place(1, 2),), 5: (Place(1, 3), Place(2, 3))}
    # the second model: y is elsewhere, x and u it lacks; its own rows where the numbers agree are left alone
    assert plan.origins[1][1] == (Place(0, 1),)
    assert plan.origins[1][2] == (Place(1, 1),)
    assert plan.origins[1][3] == (Place(2, 1),)
    assert plan.origins[1][5] == (Place(1, 3),)


def test_rows_behind_the_tokens_are_padding() -> None:
    plan = planned([["x"], ["x", "y"]], TokenizerPlan("base"), rows=[6, 4])
    assert plan.size == 6
    assert plan.origins[0] == {}
    # y's row is no padding: the base's is taken, as for rows that the model does not have
    assert plan.origins[1] == {2: (Place(0, 2),), 4: (Place(0, 4),), 5: (Place(0, 5),)}
    assert "1 of its tokens are not in the output: 'y'" in plan.notes[0]
    union = planned([["x"], ["x", "y"]], TokenizerPlan("union"), rows=[6, 4])
    assert (union.size, union.new[0]) == (6, NewToken("y", 2))  # the first row of padding
    assert planned([["x"]], TokenizerPlan("union", pad_to_multiple_of=8)).size == 8
    assert planned([["x"]], TokenizerPlan("union", pad_to_multiple_of=8)).origins[0][7] == ()


def test_a_tokenizer_larger_than_its_table_is_noted() -> None:
    plan = planned([["x", "y", "z"]], TokenizerPlan("base"), rows=[3])
    assert plan.size == 3
    assert "tokens 3 to 3 have no row" in plan.notes[0]


def test_single_tokens_from_where_the_recipe_says() -> None:
    rows = {
        "x": TokenSource("model", "b", "y"),
        "y": TokenSource("model", "b", "w", force=True),
        "w": TokenSource("zero"),
    }
    plan = planned([["x", "y"], ["y", "w"]], TokenizerPlan("union", rows))
    assert plan.origins[0][3] == ()  # w, which it lacks
    assert plan.origins[0][2] == (Place(1, 2),)  # y, forced
    assert 2 not in plan.origins[1]  # that is its own row 2
    assert 1 not in plan.origins[0]  # x it has itself
    assert 1 not in plan.origins[1]  # x it lacks: its own y, which stands in that row
    by_id = planned([["x"], ["y"]], TokenizerPlan("union", {"y": TokenSource("model", "a", token_id=0)}))
    assert by_id.origins[0][2] == (Place(0, 0),)


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (TokenizerPlan("d"), "no model of the merge"),
        (TokenizerPlan("union", {"xx": TokenSource("zero")}), "no token of the output(.|\n)*'x'"),
        (TokenizerPlan("union", {"x": TokenSource("model", "d")}), "no model of the merge"),
        (
            TokenizerPlan("union", {"x": TokenSource("model", "a", "zz")}),
            "a row that the model does not have",
        ),
        (TokenizerPlan("union", {"x": TokenSource("model", "a", token_id=99)}), "token_id 99"),
    ],
)
def test_plans_of_what_is_not_there(plan: TokenizerPlan, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        planned([["x", "y"], ["y"]], plan)


def test_a_model_without_tokenizer_and_a_token_without_a_row() -> None:
    with pytest.raises(VocabularyMismatch, match="holds no tokenizer"):
        plan_vocabulary([None], [3], ["a"], base=0, plan=TokenizerPlan("base"))
    one = vocabulary(["x", "y"])
    far = Vocabulary("b", {**one.tokens, "z": 5}, one.added, one.kind, one.files)
    with pytest.raises(VocabularyMismatch, match=r"no model has a row for a token(.|\n)*'z'"):
        plan_vocabulary(
            [far, one], [4, 3], ["a", "b"], base=0, plan=TokenizerPlan("base", pad_to_multiple_of=8)
        )


# ---- files


def test_new_tokens_in_the_files() -> None:
    base = reading(
        {
            "tokenizer.json": word_level(["the"]),
            "vocab.json": b"{}",
            "tokenizer_config.json": b'{"added_tokens_decoder": {}}',
        }
    )
    base = Vocabulary("a", base.tokens, base.added, base.kind, base.files)
    files = extended_files(
        base, [NewToken("cat", 2), NewToken("<s>", 3, {"content": "<s>", "special": True})]
    )
    assert files["vocab.json"] is None
    data = files["tokenizer.json"]
    assert data is not None
    made = tokenizers.Tokenizer.from_str(data.decode())
    assert made.get_vocab() == {"[UNK]": 0, "the": 1, "cat": 2, "<s>": 3}
    assert made.encode("the cat <s>").ids == [1, 2, 3]
    config = json.loads(files["tokenizer_config.json"] or b"")
    assert config["added_tokens_decoder"]["3"]["special"] is True
    assert extended_files(base, []) == dict(base.files)
    slow = reading({"vocab.txt": b"the\ncat"})
    with pytest.raises(VocabularyMismatch, match=r"tokenizer.json only(.|\n)*save_pretrained"):
        extended_files(slow, [NewToken("dog", 2)])
