from rung.models.messages import accepts_system, encode_messages, fold_system
from rung.models.reference import resolve
from rung.models.thinking import answer_beginning
from rung.models.tokenizer import Tokenizer

TURNS = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"})


def test_a_template_with_a_system_turn_keeps_it():
    tokenizer = Tokenizer.load(resolve("embedded").folder)
    assert accepts_system(tokenizer)
    assert encode_messages(tokenizer, TURNS) == tokenizer.encode_chat(TURNS)


def test_a_template_without_one_reads_it_in_the_first_user_turn(tmp_path):
    import json
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(resolve("embedded").folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    refusing = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    )
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": refusing}))
    tokenizer = Tokenizer.load(folder)
    assert not accepts_system(tokenizer)
    folded = ({"role": "user", "content": "Be brief.\n\nHello"},)
    assert fold_system(TURNS) == folded
    assert encode_messages(tokenizer, TURNS) == tokenizer.encode_chat(folded, begin=answer_beginning(tokenizer))
