"""The gate's items as Inspect tasks: our own families, and any task that the settings name."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from inspect_ai import Task, task_with
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.hooks import Hooks, SampleEnd, TaskStart, hooks
from inspect_ai.log import EvalSample
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageTool,
    ChatMessageUser,
    Content,
    ContentImage,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    get_model,
)
from inspect_ai.scorer import CORRECT, INCORRECT, Score, Scorer, Target, scorer, value_to_float
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.tool import ToolCall, ToolInfo, ToolParams

from tasks.evals.model import Call, Expectation, Item, ItemAnswer, ItemSet, Outcome
from tasks.evals.scorer import is_correct
from tasks.release import BadInput, digest_of

MOST_TURNS = 5
"""Requests that an item with tools may take."""
CUT_OFF = ("max_tokens", "model_length")
ENDS = ("stop", "tool_calls")


# -- our own items ----------------------------------------------------------------------------------


def items_task(family: str, items: Sequence[Item], seed: int) -> Task:
    """Our items of one family as an Inspect task."""
    samples = [
        Sample(id=item.id, input=[_question(item)], metadata={"item": item.model_dump(mode="json")}) for item in items
    ]
    return Task(name=family, dataset=MemoryDataset(samples), solver=converse(seed), scorer=exact())


def _question(item: Item) -> ChatMessageUser:
    if not item.image:
        return ChatMessageUser(content=item.prompt)
    content: list[Content] = [
        ContentImage(image=f"data:image/png;base64,{item.image}"), ContentText(text=item.prompt),
    ]  # fmt: skip
    return ChatMessageUser(content=content)


@solver
def converse(seed: int) -> Solver:
    """Ask at temperature 0; as long as the model calls tools that have results, tell these and ask on."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:  # noqa: ARG001 - a Solver has it
        item = Item.model_validate(state.metadata["item"])
        known = {key: result for tool in item.tools for key, result in tool.results.items()}
        tools = [
            ToolInfo(name=t.name, description=t.description, parameters=ToolParams.model_validate(t.parameters))
            for t in item.tools
        ]
        config = GenerateConfig(temperature=0.0, seed=seed, max_tokens=item.max_tokens, extra_body=_extras(item))
        state.messages += _already(item)
        for _ in range(MOST_TURNS if known else 1):
            state.output = await get_model().generate(state.messages, tools=tools, config=config)
            state.messages.append(state.output.message)
            calls = state.output.message.tool_calls or []
            for call in calls if known else ():
                state.messages.append(_told(call, known.get(_made(call).key, "Error: nothing is known of that.")))
            if not calls:
                break
        return state

    return solve


def _extras(item: Item) -> dict[str, Any]:
    """Fields of llama-server's own: thinking (within its budget) or none, and the schema to be enforced."""
    extras: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": item.thinking_tokens is not None}}
    if item.thinking_tokens is not None:
        extras["thinking_budget_tokens"] = item.thinking_tokens
    if item.answer_schema:
        extras["response_format"] = {
            "type": "json_schema", "json_schema": {"name": "answer", "schema": item.answer_schema},
        }  # fmt: skip
    return extras


def _already(item: Item) -> list[ChatMessage]:
    if not item.before:
        return []
    calls = [
        ToolCall(id=f"call{n}", function=call.name, arguments=call.arguments)
        for n, (call, _) in enumerate(item.before)
    ]  # fmt: skip
    told = [_told(call, result) for call, (_, result) in zip(calls, item.before, strict=True)]
    return [ChatMessageAssistant(content="", tool_calls=calls), *told]


def _told(call: ToolCall, result: str) -> ChatMessageTool:
    return ChatMessageTool(content=result, tool_call_id=call.id, function=call.function)


def _made(call: ToolCall) -> Call:
    """A call as the model made it; arguments that were no JSON are kept as they came."""
    return Call(name=call.function, arguments={"unreadable": call.parse_error} if call.parse_error else call.arguments)


@scorer(metrics=[])
def exact() -> Scorer:
    """Our exact checks; an answer that was cut off is never right."""

    async def score(state: TaskState, target: Target) -> Score:  # noqa: ARG001 - a Scorer has it
        item = Item.model_validate(state.metadata["item"])
        calls = [_made(c) for c in state.output.message.tool_calls or []] if state.output.choices else []
        whole = str(state.output.stop_reason) in ENDS
        right = whole and is_correct(item.expected, state.output.completion, calls)
        return Score(value=CORRECT if right else INCORRECT, answer=state.output.completion)

    return score


# -- what came of a sample, ours or anybody's ---------------------------------------------------------


@hooks(name="evals", description="tells each answer of the eval gate as it comes")
class Telling(Hooks):
    """Inspect makes one of this when the module is imported; `tell` is set by whoever wants to be told."""

    tell: Callable[[ItemAnswer], None] = staticmethod(lambda _: None)
    family: dict[str, str] = {}  # noqa: RUF012

    async def on_task_start(self, data: TaskStart) -> None:
        Telling.family[data.eval_id] = data.spec.task

    async def on_sample_end(self, data: SampleEnd) -> None:
        Telling.tell(judged(item_id(Telling.family[data.eval_id], data.sample.id), data.sample))


def item_id(family: str, sample: str | int | None) -> str:
    """Our own items are samples under their own id, other people's get their family's name before it."""
    return str(sample) if str(sample).startswith(f"{family}/") else f"{family}/{sample}"


def judged(item: str, sample: EvalSample) -> ItemAnswer:
    """What this sample is as an answer. A score above a half is right: partly right is wrong."""
    usage = list(sample.model_usage.values())
    answer = ItemAnswer(
        item=item, outcome=Outcome.WRONG, text=_said(sample), seconds=round(sample.working_time or 0.0, 3),
        prompt_tokens=sum(
            u.input_tokens + (u.input_tokens_cache_read or 0) + (u.input_tokens_cache_write or 0) for u in usage
        ),
        completion_tokens=sum(u.output_tokens for u in usage),
    )  # fmt: skip
    stop = str(sample.output.stop_reason) if sample.output.choices else "no answer"
    scores = list((sample.scores or {}).values())
    if sample.error or not scores or stop not in (*ENDS, *CUT_OFF):
        why = sample.error.message if sample.error else f"the answer ended with {stop} and {len(scores)} scores"
        return answer.model_copy(update={"outcome": Outcome.ERRORED, "error": why[:500]})
    if value_to_float()(scores[0].value) > 0.5:
        outcome = Outcome.CORRECT
    elif stop in CUT_OFF:
        outcome = Outcome.THOUGHT_OUT if _only_thought(sample) else Outcome.TRUNCATED
    else:
        outcome = Outcome.WRONG
    return answer.model_copy(update={"outcome": outcome})


def _said(sample: EvalSample) -> str:
    """The tool calls that the model made, one a line, and its last words."""
    asked = max((n for n, m in enumerate(sample.messages) if m.role == "user"), default=0)
    generated = [m for m in sample.messages[asked:] if isinstance(m, ChatMessageAssistant) and m.source == "generate"]
    calls = [f"-> {_made(c)}" for m in generated for c in m.tool_calls or []]
    return "\n".join([*calls, sample.output.completion]).strip()


def _only_thought(sample: EvalSample) -> bool:
    content = sample.output.message.content
    thought = isinstance(content, list) and any(isinstance(part, ContentReasoning) for part in content)
    return thought and not sample.output.completion.strip()


# -- other people's tasks -----------------------------------------------------------------------------


def load(spec: str, folder: Path) -> tuple[Task, str]:
    """The Inspect task that `file.py@task` or `package/module@task` names, and a digest of its code and samples.

    Relative files are looked for in `folder`. Samples without an id get their number. Raises BadInput.
    """
    place, _, name = spec.rpartition("@")
    try:
        module = _module(place, folder)
        task = getattr(module, name)()
        if not isinstance(task, Task):
            raise TypeError(f"{name} made a {type(task).__name__}, not an Inspect task")
    except Exception as error:
        raise BadInput(
            f"the Inspect task {spec} cannot be loaded", evidence=f"{type(error).__name__}: {error}",
            todo="write path/to/file.py@task or package/module@task in evals.tasks",
        ) from error  # fmt: skip
    for number, sample in enumerate(task.dataset, 1):
        if sample.id is None:
            sample.id = number
    source = Path(inspect.getsourcefile(module) or "").read_text(encoding="utf-8")
    return task, digest_of([source, [sample.model_dump(mode="json") for sample in task.dataset]])


def _module(place: str, folder: Path) -> ModuleType:
    if not place.endswith(".py"):
        return importlib.import_module(place.replace("/", "."))
    path = folder / place
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def listing(specs: Sequence[str], folder: Path) -> ItemSet:
    """The samples of these Inspect tasks as items: of the template that a sample's metadata names, or of its own."""
    items, sources = [], []
    for spec in specs:
        task, digest = load(spec, folder)
        sources.append(digest)
        family = spec.rpartition("@")[2]
        for sample in task.dataset:
            template = (sample.metadata or {}).get("template", sample.id)
            items.append(
                Item(
                    id=f"{family}/{sample.id}", family=family, template=f"{family}/{template}", task=spec,
                    prompt=_prompt(sample), expected=Expectation(kind="inspect", value=_target(sample)),
                )
            )  # fmt: skip
    return ItemSet(items=tuple(items), sources=tuple(sources))


def _prompt(sample: Sample) -> str:
    return sample.input if isinstance(sample.input, str) else "\n".join(m.text for m in sample.input)


def _target(sample: Sample) -> str:
    return sample.target if isinstance(sample.target, str) else ", ".join(sample.target)


def chosen_task(spec: str, folder: Path, items: Sequence[Item]) -> Task:
    """The Inspect task that `spec` names, with only these items of it."""
    task, _ = load(spec, folder)
    family, wanted = spec.rpartition("@")[2], {item.id for item in items}
    dataset = task.dataset.filter(lambda sample: f"{family}/{sample.id}" in wanted)
    return task_with(task, dataset=dataset, epochs=1, name=family)
