"""An artifact for other servers: vLLM, Ollama, KServe.

They run the model; Rung keeps the prompt, the demonstrations and the decoder. So an export has two parts: the model as
the server reads it, with the command that starts it, and `artifact/`, the same artifact on that server's endpoint.
`rung run`, `predict`, `eval` and `serve` work with it as with any other.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from rung.artifact.artifact import Artifact
from rung.artifact.parts import BASE
from rung.errors import ArtifactError
from rung.export.gguf import write_gguf
from rung.export.merge import check_new, write_model
from rung.models import bounded
from rung.models.cache import publish
from rung.models.chat import Beginning
from rung.models.messages import Message, Messages, accepts_system, end_token, fold_system
from rung.models.reference import ModelFiles, is_endpoint, resolve
from rung.models.thinking import THOUGHT_END, Thinking, answer_beginning, thought_beginning
from rung.models.tokenizer import Tokenizer, chat_template_of
from rung.progress import QUIET, Progress

# ---- chat templates with which other servers render what Rung renders
#
# vLLM and KServe run the model's own template, in Jinja; four gaps are filled. Ollama runs Go's template language.
# Without a TEMPLATE, it compares the model's template with a dozen that it knows, and a model with none of them reads
# the bare text of the last message. So the text around each message is read off rendered conversations, and kept only
# if conversations of every form come out equal.

# A system message goes before the first user's text (see `rung.models.messages`).
FOLDED = (
    "{%- if messages | length > 1 and messages[0]['role'] == 'system' and messages[1]['role'] == 'user' -%}"
    "{%- set messages = [{'role': 'user', 'content': messages[0]['content'] + '\\n\\n' + messages[1]['content']}]"
    " + messages[2:] -%}{%- endif -%}"
)
# Some templates read in the last user's text whether to think; %s is what they look for.
ASKED = (
    "{%%- set last = namespace(user=-1) -%%}{%%- for turn in messages -%%}"
    "{%%- if turn['role'] == 'user' and turn['content'] is string -%%}{%%- set last.user = loop.index0 -%%}"
    "{%%- endif -%%}{%%- endfor -%%}{%%- if last.user >= 0 -%%}"
    "{%%- set messages = messages[:last.user] + [{'role': 'user', 'content': messages[last.user]['content'] + %s}]"
    " + messages[last.user + 1:] -%%}{%%- endif -%%}"
)
# The text of a chat with a model that has no template (see `rung.models.chat`); %s is the beginning token.
PLAIN = (
    "%s{%%- set ns = namespace(text='') -%%}"
    "{%%- set answer = [{'role': 'assistant', 'content': ''}] if add_generation_prompt else [] -%%}"
    "{%%- for turn in messages + answer -%%}"
    "{%%- set cued = turn['role'] == 'assistant' and ns.text[-1:].isspace() -%%}"
    "{%%- set ns.text = ns.text + ('\\n\\n' if ns.text and not cued else '') + turn['content'] -%%}"
    "{%%- endfor -%%}{{ ns.text }}"
)
CHATS = (("user",), ("system", "user"), ("user", "assistant", "user"), ("system", "user", "assistant", "user"),
         ("user", "assistant", "user", "assistant", "user"))  # fmt: skip
WORDS = ("Mind this.", "Is it {{ .Content }} or\n\n{% x %}?", 'No: "it" \\ is 2 < 3 & é.', "And {}?", "a")
LOOSE = " x \n"  # a message with white space around it, which many templates strip


def server_template(tokenizer: Tokenizer, thinking: Thinking = "off") -> str | None:
    """A chat template with which a server renders what Rung does; None where the model's own does so.

    Servers refuse chats with a model that has no template, and system messages where the template knows none. A
    template that can think does so as the artifact does, unless a request says otherwise (`chat_template_kwargs`). One
    that writes today's date gets the day that Rung writes.

    Raises:
        ArtifactError: `export-unsupported`: the template writes today's date in a form that it computes.
    """
    if tokenizer.chat_template is None:
        bos = tokenizer.bos_token if tokenizer.adds_bos else None
        return PLAIN % (f"{{{{ {json.dumps(bos, ensure_ascii=False)} }}}}" if bos else "")
    begin = answer_beginning(tokenizer, thinking)
    switches = "".join(
        f"{{%- if {name} is not defined -%}}{{%- set {name} = {json.dumps(value)} -%}}{{%- endif -%}}"
        for name, value in begin.variables
    )
    switches += ASKED % json.dumps(begin.switch) if begin.switch else ""
    head = switches + ("" if accepts_system(tokenizer) else FOLDED)
    template = head + bounded.dated(tokenizer.chat_template)
    if "strftime_now(" in template:
        problem = "the model's chat template computes the form of today's date, which only Rung can keep from changing"
        raise ArtifactError("export-unsupported", problem, hint="serve it with `rung serve`")
    return template if template != tokenizer.chat_template else None


@dataclass(frozen=True, slots=True)
class OllamaTemplate:
    """The text around the messages of a conversation: a system message or none, then user and assistant in turns."""

    before_system: str  # begins a conversation that has a system message
    after_system: str  # between that and the first user message
    before_user: str  # begins a conversation without a system message
    before_answer: str  # between a user message and its answer
    after_answer: str  # between an answer and the next user message
    end: str  # after the last user message
    strips: bool = False  # the model's own template strips white space around messages, which Ollama's cannot

    def render(self, messages: Sequence[Message]) -> str:
        """Render a conversation as Ollama renders `go()`."""
        text = ""
        for number, message in enumerate(messages):
            if message["role"] == "system":
                text += self.before_system + message["content"] + self.after_system
            elif message["role"] == "user":
                text += (self.before_user if number == 0 else "") + message["content"]
            else:
                text += self.before_answer + message["content"] + self.after_answer
        return text + self.end

    def go(self) -> str:
        """The template in Go's language, all of its text in strings: nothing is trimmed or read as code."""
        system = f"{_quoted(self.before_system)}{{{{ .Content }}}}{_quoted(self.after_system)}"
        user = f"{{{{ if eq $i 0 }}}}{_quoted(self.before_user)}{{{{ end }}}}{{{{ .Content }}}}"
        answer = f"{_quoted(self.before_answer)}{{{{ .Content }}}}{_quoted(self.after_answer)}"
        turns = f'{{{{ if eq .Role "system" }}}}{system}{{{{ else if eq .Role "user" }}}}{user}'
        loop = f"{{{{ range $i, $_ := .Messages }}}}{turns}{{{{ else }}}}{answer}{{{{ end }}}}{{{{ end }}}}"
        return loop + _quoted(self.end)


def ollama_template(tokenizer: Tokenizer, thinking: Thinking = "off") -> OllamaTemplate:
    """The text around messages in a model's chats, without the beginning token where llama.cpp adds it.

    Raises:
        ArtifactError: `export-unsupported`: the chat template does more than put text around messages.
        ModelError: it is broken, does not take a conversation of user and assistant in turns, or knows no thoughts.
    """
    if thinking != "off" and (stop := thought_beginning(tokenizer, thinking).stop) != THOUGHT_END:
        # The whole text is one message there, in which clients find the answer by this tag.
        raise _refused(f"ends a thought with {stop!r} and not with {THOUGHT_END!r}")

    def rendered(messages: Messages) -> str:
        return _rendered(tokenizer, messages, thinking)

    turns = _around(rendered, ("user", "assistant", "user"))
    system = _around(rendered, ("system", "user"))
    template = OllamaTemplate(system[0], system[1], turns[0], turns[1], turns[2], turns[3])
    if any(rendered(chat) != template.render(chat) for chat in (_chat(roles, WORDS) for roles in CHATS)):
        raise _refused("does more than put text around messages")
    loose = _chat(("user",), (LOOSE,))
    return replace(template, strips=rendered(loose) != template.render(loose))


def _around(rendered: Callable[[Messages], str], roles: Sequence[str]) -> list[str]:
    """The text before, between and after the messages of a conversation."""
    marks = [f"RUNG{number}MARK" for number in range(len(roles))]
    text, pieces = rendered(_chat(roles, marks)), []
    for mark in marks:
        before, mark_found, text = text.partition(mark)
        if not mark_found:
            raise _refused("leaves messages out, or moves them")
        pieces.append(before)
    return [*pieces, text]


def _rendered(tokenizer: Tokenizer, messages: Messages, thinking: Thinking) -> str:
    """The text from which llama.cpp gets the tokens that `encode_messages` gives; a thought is the model's to open."""
    folded = messages if accepts_system(tokenizer) else fold_system(messages)
    begin = answer_beginning(tokenizer, thinking)
    text = tokenizer.render(
        folded, begin=begin if thinking == "off" else Beginning(begin.variables, switch=begin.switch)
    )
    if tokenizer.chat_template is None or not tokenizer.adds_bos:
        return text
    if tokenizer.bos_token is None or not text.startswith(tokenizer.bos_token):
        raise _refused("does not begin with the token that llama.cpp puts before every text")
    return text.removeprefix(tokenizer.bos_token)


def _chat(roles: Sequence[str], words: Sequence[str]) -> Messages:
    turns = [{"role": role, "content": word} for role, word in zip(roles, words, strict=False)]
    return cast("Messages", tuple(turns))


def _quoted(text: str) -> str:
    """Text as a Go string in an action, empty for empty text."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""


def _refused(why: str) -> ArtifactError:
    problem = f"the model's chat template {why}, and Ollama's template language cannot express that"
    hint = "serve it with `rung serve`, or with a server that runs the model's own template: `--to vllm`"
    return ArtifactError("export-unsupported", problem, hint=hint)


# ---- exports

ServerName = Literal["vllm", "ollama", "kserve"]
GGUF = "model.gguf"
DATED = f"Where the model's own template writes today's date, this one always writes that of {bounded.DAY:%Y-%m-%d}."


def export_for(server: ServerName, artifact: Artifact, folder: Path, *, progress: Progress = QUIET) -> str:
    """Write an artifact for a server into a new folder, completely or not at all; returns the command that starts it.

    For `vllm` that is the model in Hugging Face's format, with any tuned weights merged; for `kserve` the same and an
    InferenceService; for `ollama` one GGUF file and a Modelfile.

    Raises:
        ArtifactError: `file-exists`; `export-unsupported`: the decoder needs more than such a server runs.
        TrainingError: `export-unsupported`: no weights of the base model have the same effect.
        EngineError: `export-unsupported`.
    """
    _check(server, artifact)
    check_new(folder)
    files = resolve(artifact.model)
    name = server_name(artifact.signature.task)
    write, *texts = _WRITERS[server]
    endpoint, command, before = (text.format(name=name) for text in texts)

    key = "" if "//localhost" in endpoint else "RUNG_API_KEY=none "  # on this machine none is needed

    def build(target: Path) -> None:
        write(artifact, files, target, progress)
        replace(artifact, model=f"{endpoint}#{name}", engine="api", weights=BASE).save(target / "artifact")
        text = README.format(name=name, server=server, before=before, command=command, endpoint=endpoint, key=key)
        text += f"\n{DATED}\n" if _is_dated(files.folder) else ""
        (target / "README.md").write_text(text, "utf-8")

    publish(folder, build)
    return command


def server_name(task: str) -> str:
    """The name of a task's model on servers: one that Kubernetes takes for a service, beginning with a letter."""
    name = re.sub(r"[^a-z0-9]+", "-", task.lower()).strip("-")
    name = name if name[:1].isalpha() else f"task-{name}"
    return name[:50].strip("-")


def _check(server: ServerName, artifact: Artifact) -> None:
    why = artifact.decoder.refuses("servers")
    if not why and is_endpoint(artifact.model):
        why = f"its model is at {artifact.model} already"
    if not why and server == "ollama":  # Ollama does not say how likely a text is
        why = artifact.decoder.refuses("servers-without-scores")
    if why:
        raise ArtifactError("export-unsupported", f"{artifact.name}: {why}", hint="serve it with `rung serve`")


def _write_folder(artifact: Artifact, files: ModelFiles, target: Path, progress: Progress) -> None:
    """Write the model in Hugging Face's format."""
    del progress
    model = target / "model"
    if artifact.weights.reference is None:
        shutil.copytree(files.folder, model)
    else:
        model.mkdir()
        write_model(artifact, model)
    if (template := server_template(Tokenizer.load(model), artifact.prompt.thinking)) is not None:
        (model / "chat_template.jinja").write_text(template, "utf-8")


def _write_ollama(artifact: Artifact, files: ModelFiles, target: Path, progress: Progress) -> None:
    # first: it may refuse, and is quick
    prompt = artifact.prompt
    instructions = modelfile(Tokenizer.load(files.folder), files.context, prompt.head(), prompt.thinking)
    _write_folder(artifact, files, target, progress)
    write_gguf(target / "model", target / GGUF, name=files.name, licence=files.licence, progress=progress)
    shutil.rmtree(target / "model")
    (target / "Modelfile").write_text(instructions, "utf-8")


def modelfile(tokenizer: Tokenizer, context: int, system: str = "", thinking: Thinking = "off") -> str:
    """A Modelfile with which Ollama shows a model what Rung shows it, and takes the likeliest token.

    `system` is the artifact's system message: Ollama adds it where a client sends none, as Rung's own client does.

    Raises:
        ArtifactError: `export-unsupported`: Ollama's template language cannot express the model's chat template.
        ModelError: `no-thinking`: the chat template knows no thoughts, and the artifact thinks.
    """
    template = ollama_template(tokenizer, thinking)
    ends = sorted(tokenizer.eos_ids - {tokenizer.eos_id, end_token(tokenizer)})  # those two are in the file
    stops = [json.dumps(tokenizer.decode([end], skip_special=False), ensure_ascii=False) for end in ends]
    note = "# The model's own template strips white space around messages; this one cannot."
    lines = [note] if template.strips else []
    lines += [f"# {DATED}"] if _is_dated(tokenizer.folder) else []
    lines += [f"FROM ./{GGUF}", f'TEMPLATE """{template.go()}"""', "PARAMETER temperature 0"]
    if system and ('"""' in system or system.endswith('"')):
        lines.insert(0, "# A Modelfile cannot hold this system message, for its quotes: clients have to send it.")
    elif system:
        lines.append(f'SYSTEM """{system}"""')
    lines.append("PARAMETER repeat_penalty 1")  # Ollama's default, 1.1, does not give the likeliest text
    lines += [f"PARAMETER num_ctx {context}", *(f"PARAMETER stop {stop}" for stop in stops), ""]
    return "\n".join(lines)


def _is_dated(model: Path) -> bool:
    return "strftime_now" in (chat_template_of(model) or "")


def _write_kserve(artifact: Artifact, files: ModelFiles, target: Path, progress: Progress) -> None:
    _write_folder(artifact, files, target, progress)
    name = server_name(artifact.signature.task)
    arguments = [f"--model_name={name}", f"--max_model_len={files.context}", "--generation-config=vllm"]
    model = {"modelFormat": {"name": "huggingface"}, "args": arguments, "storageUri": f"pvc://models/{name}"}
    service = {
        "apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": {"name": name},
        "spec": {"predictor": {"model": model}},
    }  # fmt: skip
    (target / "inferenceservice.json").write_text(json.dumps(service, indent=2) + "\n", "utf-8")


WriteModel = Callable[[Artifact, ModelFiles, Path, Progress], None]
# What writes it, its endpoint, the command that starts it, and what to do before.
_WRITERS: dict[ServerName, tuple[WriteModel, str, str, str]] = {
    "vllm": (_write_folder, "http://localhost:8000/v1",
             "vllm serve ./model --served-model-name {name} --generation-config vllm", "Start it in this folder:"),
    "ollama": (_write_ollama, "http://localhost:11434/v1", "ollama create {name} -f Modelfile",
               "Register it, in this folder; Ollama then loads it on the first request:"),
    "kserve": (_write_kserve, "http://{name}.default.svc.cluster.local/openai/v1",
               "kubectl apply -f inferenceservice.json",
               "Copy `model/` to the volume claim `models`, as the folder `{name}`, then:"),
}  # fmt: skip
README = """# {name} for {server}

{before}

    {command}

Use it through the artifact, which adds instruction, demonstrations and decoder:

    {key}rung run artifact "your text"

`artifact/` expects the server at {endpoint}. Another precision or engine may give other
answers than those that were measured: `rung eval artifact DATA` measures it there.
"""
