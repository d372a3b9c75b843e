"""The runbook: every symptom that is known, with its cause, its fix, and what of this software catches it.

One table for all: `llama-release explain` finds the row that a message belongs to, `doctor` makes the checks that rows
name, and the documentation's runbook is written from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from tasks.release import Model, pieces

Area = Literal["deployment", "tool calling", "client", "monitoring", "upgrade", "machine"]


class Row(Model):
    """One symptom."""

    id: str = Field(pattern=r"^[a-z0-9-]+$", description="a name that does not change: links point to it")
    area: Area
    symptom: str = Field(description="what a person sees")
    patterns: tuple[str, ...] = Field(
        default=(), description="regular expressions, searched in one line of a message or log, in any case"
    )
    cause: str
    fix: str = Field(description="what to do; commands in backquotes")
    source: str = Field(
        description="who says so: the guide's section and row, upstream's pull request, or a measurement"
    )
    checks: tuple[str, ...] = Field(
        description="what catches it: `doctor NAME`, `contracts SUBJECT.PROMISE`, `stage NAME`, or a file here"
    )


def _status(code: str) -> str:
    """A pattern for an HTTP status, as llama-server's log, access logs, httpx, curl and the OpenAI client write it."""
    said = r"HTTP/[\d.]+|\bstatus(?:[ _]?code)?|\bcode|\banswered|\bgot|done request: [A-Z]+ \S+ \S+"
    return rf"(?:{said})\W{{1,4}}(?:{code})\b"


def _exit(code: str) -> str:
    """A pattern for how a process ended, as shells, Docker, Modal, Prefect and Python's returncode write it."""
    said = r"\b(?:exit(?:ed|s)?|ended|returncode)(?:\s+(?:with|code|status|exit))*+\s*+[:=(]?\s*+"
    return rf"{said}(?:{code})(?!\.?\d|\s*m?s\b)"


_KERNEL = r"llama-server\[\d+\]:? "
_WHEN = "A message does not always tell when: the lines before it, and the boot records (`llama-release history`), do"

RUNBOOK: tuple[Row, ...] = (
    # -- a build that is not right on this machine: says more than the signal that it may name ---------------------
    Row(
        id="self-test",
        area="machine",
        symptom="a finished build fails its self-test: it dies, or its log-probabilities are not the reference's",
        patterns=(
            r"as it was built here (is killed by|fails its self-test)",
            r"passed its self-test when it was built, and fails it now",
        ),
        cause="the code that computes is wrong on this machine: by upstream's change, or by a fault of the compiler, "
        "the CPU or the driver. The error says which of them was seen: production's build, other flags and other "
        "compilers were tried on the same machine",
        fix="what the error names as the way round (`recipe.cpu_flags`, another compiler); when production's build is "
        "right here, take another upstream build. `llama-release doctor` shows the known faults that strike here",
        source="tasks/faults.toml: each fault with its own source; llama.cpp issues 26954, 28581, 22011",
        checks=("doctor self test", "doctor known faults", "stage build"),
    ),
    Row(
        id="other-cpu",
        area="machine",
        symptom="a build was made for another CPU than this one",
        patterns=(r"was made for another CPU than this one",),
        cause="native code of a store that was copied, or is mounted by another kind of machine: it may use "
        "instructions that this CPU does not have, and would die of SIGILL",
        fix="`llama-release upgrade --to bN` of the same build makes one for this CPU; recipe.cmake "
        '= { GGML_NATIVE = "OFF" } makes builds that run on any',
        source="unsloth issues 4683 and 4535",
        checks=("doctor self test", "stage staging"),
    ),
    # -- a server that dies by a signal: a line that names one says more than what else stands in it ------------
    Row(
        id="killed-sigsegv",
        area="machine",
        symptom="the server dies with SIGSEGV: segmentation fault, exit code 139 or -11",
        patterns=(
            r"\bSIGSEGV\b",
            r"Segmentation fault",
            _KERNEL + r"(segfault at|general protection fault)",
            _exit("139|-11"),
        ),
        cause="it touched memory that is not its own: by a fault of this build, or of the compiler that made it. While "
        "loading, warming up or at the first token, on a CPU with AMX, it may be gcc before 13.2.1, which drops half "
        "of the tile configuration (llama.cpp issue 26954); when it gets no memory, older builds (b8672) die of it "
        f"without a word; after a restore, what was mapped or unified may not have come back. {_WHEN}",
        fix="read the kernel's line (`dmesg | grep llama-server` as root): it names the library, and a general "
        "protection fault at `ldtilecfg` is AMX. `llama-release doctor` looks at compiler and CPU; build with "
        "another compiler (gcc 13.2.1 or newer). When production's build dies here too it is the machine, not the "
        "release; when only after a restore, `llama-release redeploy`",
        source="llama.cpp issues 26954 and 20824; measured with gcc 12.2 on b11434, and on b8672; Modal: a container "
        "that ends with 139 may be a failed restore",
        checks=("doctor toolchain", "doctor crashes", "stage contracts", "stage restore"),
    ),
    Row(
        id="killed-sigill",
        area="machine",
        symptom="the server dies with SIGILL: illegal instruction, exit code 132 or -4",
        patterns=(
            r"\bSIGILL\b",
            r"Illegal instruction",
            _KERNEL + r"(trap )?(invalid opcode|undefined instruction)",
            _exit("132|-4"),
        ),
        cause="an instruction that this CPU does not have, or may not run now. While loading or at the first token: "
        "the binary was made for another CPU (GGML_NATIVE on a machine with AVX-512 or AMX; unsloth issue 4683). "
        "After a restore: CRIU does not bring AMX's tile configuration back (criu issue 1448), or the snapshot was "
        f"taken on another CPU. {_WHEN}",
        fix="compare the CPU with the one it was built on (`llama-release doctor`; `lscpu`) and build it here, or with "
        "GGML_NATIVE off; when it died after a restore, build without AMX (-mno-amx-tile) or set "
        '`local.snapshots = "off"`. The kernel\'s line (`dmesg | grep llama-server` as root) names the library',
        source="unsloth issues 4683 and 4535; criu issue 1448; measured with CRIU 4.2.1 and gcc 12 and 14",
        checks=("doctor toolchain", "doctor crashes", "stage contracts", "stage restore"),
    ),
    Row(
        id="killed-sigbus",
        area="machine",
        symptom="the server dies with SIGBUS: bus error, exit code 135 or -7",
        patterns=(r"\bSIGBUS\b", r"\bBus error\b", r"hardware memory corruption", _exit("135|-7")),
        cause="a page of a mapped file could not be had: the model file was cut off or written anew under the server, "
        f"or the disk or tmpfs below it is full; seldom the memory itself. {_WHEN}",
        fix="`llama-release doctor` compares the files with their sha256; look at `df` and at the kernel's log "
        "(`dmesg`: hardware memory corruption). Publish a model as a new file, never over the old one; "
        "`server.memory_map = false` reads it instead of mapping it",
        source="mmap(2): SIGBUS; mm/memory-failure.c; seen with a file that was cut off while it was mapped",
        checks=("doctor stages", "doctor disk", "doctor crashes"),
    ),
    Row(
        id="killed-sigabrt",
        area="deployment",
        symptom="the server dies with SIGABRT: it gave up by itself, exit code 134 or -6",
        patterns=(
            r"\bSIGABRT\b",
            r"GGML_(ASSERT|ABORT)\(.*\)",
            r"terminate called (after throwing|without an active)",
            r"^\s*Aborted( \(core dumped\))?\s*$|: +\d+ Aborted\b",
            _exit("134|-6"),
        ),
        cause="a GGML_ASSERT or GGML_ABORT met what may not be (a shape or type that a kernel does not know, a request "
        "that nobody checked), or a C++ exception was caught by nobody (std::terminate; out of memory is one: "
        f"std::bad_alloc): its own words just before say which. {_WHEN}",
        fix="read the server's log just before its end: file and line of the assertion, or `what():`; look them up in "
        "llama.cpp's issues; try a newer or the former build, and ask again what was asked last. "
        '`llama-release rollback --reason "..."` when it came with a release',
        source="ggml/src/ggml.c: ggml_abort; measured on b8672 and b11434",
        checks=("doctor crashes", "stage contracts", "stage restore"),
    ),
    Row(
        id="killed-sigkill",
        area="machine",
        symptom="a process was killed with SIGKILL: out of memory, or by somebody; exit code 137 or -9",
        patterns=(
            r"\bSIGKILL\b",
            r"Out of memory: Killed process|out of memory: Killed process|OOMKilled|oom-kill:",
            r"was killed before it could",
            _exit("137|-9"),
        ),
        cause="no program does that to itself: the kernel when memory is short (of the machine, or of the container's "
        "limit), a supervisor or somebody by hand, or a run that was cancelled. It is no fault of the release",
        fix="the kernel's log tells the first (`dmesg | grep -i 'killed process'` as root; in a container the host's): "
        "then lower server.ctx_per_slot or server.slots, or give it more memory, and run it again",
        source="mm/oom_kill.c; signal(7); Prefect 3.8: its runner's words",
        checks=("doctor crashes", "stage contracts", "stage restore"),
    ),
    # -- the guide's nine production issues ---------------------------------------------------------------------
    Row(
        id="unknown-architecture",
        area="deployment",
        symptom="the server ends at once: unknown model architecture",
        patterns=(r"unknown model architecture", r"unsupported model architecture"),
        cause="the build is older than the model: llama.cpp adds architectures in particular builds (gemma4 in b8637)",
        fix="serve a newer build: `llama-release upgrade`; `llama-release doctor` asks the build before a load",
        source="guide 01 row 1; measured on b8672 and b11434",
        checks=("doctor architecture", "stage contracts"),
    ),
    Row(
        id="thoughts-hidden",
        area="deployment",
        symptom="no thinking tokens are visible",
        patterns=(
            r"thinking tokens? (are )?not visible",
            r"reasoning_content['\"]?: ?(null|\"\")",
            r"0 thinking tokens",
        ),
        cause="the template or a parameter hides them: enable_thinking false, no --jinja, --reasoning-format none, "
        "a template that knows nothing of thinking; or the model saw no need to think, which is its right",
        fix="serve with --jinja and the model's own template, ask with chat_template_kwargs "
        '{"enable_thinking": true}; `llama-release doctor --endpoint URL` says which of them it is',
        source="guide 01 row 2, guide 07: thinking is adaptive; llama.cpp tools/server/README.md --reasoning-format",
        checks=(
            "doctor thinking",
            "doctor thoughts",
            "contracts thinking.parsed",
            "contracts thinking.can_be_turned_off",
        ),
    ),
    Row(
        id="api-key",
        area="client",
        symptom="401 Unauthorized",
        patterns=(
            r"Invalid API Key",
            r"authentication_error",
            r"\b401 (Unauthorized|Client Error)",
            _status("401"),
            r"refused the API key|wants an API key, and none was sent|the API key is not known here",
        ),
        cause="no API key was sent, or not the server's: the variable is not set in this shell; or the key was changed "
        "and the server still has the one that it was snapshotted with",
        fix="`set -a; . ./.env; set +a` in this shell, and send `Authorization: Bearer <key>`; after a change of the "
        "key `llama-release redeploy`",
        source="guide 01 row 3, guide 04; measured on b8672 and b11434",
        checks=("doctor API key", "doctor key", "contracts auth.right_key", "contracts auth.wrong_key"),
    ),
    Row(
        id="flag-removed",
        area="upgrade",
        symptom="the server does not know a flag: invalid argument",
        patterns=(r"error: invalid argument: ?-", r"the argument has been removed\. use", r"does not take our argv"),
        cause="the flag belongs to another build: --no-mmap and --mlock went in b10884 (now --load-mode), --draft-max "
        "and the --webui flags were renamed, and --load-mode is not known before b10884",
        fix='`llama-release doctor --argv "..."` names each flag that the build does not take, and its new name; in '
        "llama-release.toml settings have names that do not change",
        source="guide 01 row 4; llama.cpp b10884; measured on b8672 and b11434",
        checks=("doctor argv", "stage preflight"),
    ),
    Row(
        id="flag-value",
        area="deployment",
        symptom="the server refuses a flag's value, such as that of a bare --flash-attn",
        patterns=(r"error while handling argument", r"unknown value for --flash-attn", r"expected value for argument"),
        cause="the value is missing or wrong: --flash-attn wants on, off or auto since b6325, and a bare one takes the "
        "next word for its value",
        fix='give the value (`--flash-attn on`); `llama-release doctor --argv "..."` asks the binary itself',
        source="guide 01 row 4; measured on b8672 and b11434",
        checks=("doctor argv", "stage preflight"),
    ),
    Row(
        id="blocking-modal-call",
        area="deployment",
        symptom="AsyncUsageWarning",
        patterns=(r"AsyncUsageWarning", r"blocking Modal interface is being used in an async context"),
        cause="an async function calls Modal's blocking interface: the event loop stands still meanwhile",
        fix="`await f.remote.aio(...)` and its like; `llama-release doctor --code PATH` names each line",
        source="guide 01 row 5; modal/_utils/async_utils.py of Modal 1.6",
        checks=("doctor event loop",),
    ),
    Row(
        id="stale-binary",
        area="upgrade",
        symptom="a build from new source shows an old build number",
        patterns=(
            r"the finished binary is not b\d+",
            r"--version says: ",
            r"version: 0 \(unknown\)|b0-unknown",
        ),
        cause="a cache gave back an older binary (image layers are cached by their text, not by what they fetch), or "
        "it was compiled without its build number",
        fix="`llama-release doctor` compares each binary with its tag; `llama-release rebuild DIGEST` and an upgrade "
        "make one anew. A build here lies under a digest of source, recipe and toolchain, in no image",
        source="guide 01 row 6, guide 07: check Modal's image cache",
        checks=("doctor binaries", "stage build"),
    ),
    Row(
        id="hf-xet",
        area="deployment",
        symptom="weights download slowly",
        patterns=(
            r"'hf_xet' package is not installed",
            r"Falling back to regular HTTP download",
            r"HF_XET_HIGH_PERFORMANCE",
        ),
        cause="huggingface_hub without hf_xet, or hf_xet without its fast mode",
        fix="`pip install 'huggingface_hub[hf_xet]'` and `export HF_XET_HIGH_PERFORMANCE=1`; weights named in "
        "[modal.weights] are fetched in an image that has both",
        source="guide 01 row 7; huggingface_hub/file_download.py",
        checks=("doctor hf_xet",),
    ),
    Row(
        id="budget-ignored",
        area="deployment",
        symptom="thinking_budget_tokens has no effect",
        patterns=(
            r"(thinking|reasoning)_budget_tokens.{0,40}(changes nothing|ignored|no effect)",
            r"budget \d+ let \d+ words of thought through",
        ),
        cause="the Gemma 4 parser lost its thinking tags (llama.cpp PR 21418, b8665 to b8743): the budget is read and "
        "never applied, without a word",
        fix="`llama-release upgrade` to b8744 or newer, or build with patch 0001; "
        "`llama-release doctor --endpoint URL` asks twice and compares",
        source="guide 01 row 8; llama.cpp PR 21418 and PR 21697; measured on b8672 with and without the patch",
        checks=("doctor budget", "contracts thinking.budget_6", "contracts thinking.budget_0", "stage proof"),
    ),
    Row(
        id="responses-tools",
        area="deployment",
        symptom="an IDE's agent mode (Cursor, Codex CLI) calls no tools, or stops after the first",
        patterns=(
            r"does not support 'previous_response_id'",
            r"(POST |for url .*)/v1/responses.{0,60}\b(400|404|50[01])\b",
        ),
        cause="they speak /v1/responses: older builds drop parts of the tool round trip, and llama.cpp keeps no "
        "responses to continue from (previous_response_id)",
        fix="`llama-release doctor --endpoint URL` makes the round trip as they do; then `llama-release upgrade`. A "
        "client must send the whole conversation with each request",
        source="guide 01 row 9, guide 07: Cursor and Codex CLI use /v1/responses; measured on b8672 and b11434",
        checks=("doctor responses", "contracts tools.responses_answered", "contracts tools.responses"),
    ),
    # -- tool calling -------------------------------------------------------------------------------------------
    Row(
        id="tool-choice-auto",
        area="tool calling",
        symptom="tool_choice auto: a call that fits no tool",
        patterns=(
            r"it calls '.*', which is none of the tools",
            r"the arguments of \S+ (do not fit its schema|are not JSON)",
            r"Failed to parse tool call arguments as JSON",
        ),
        cause="the model decides, and now and then it decides wrongly: auto is still the most reliable mode",
        fix="check name and arguments before a tool is run, and ask again with the fault named: "
        "`Client.ask` of tasks/endpoint does both",
        source="guide 03: auto",
        checks=("tasks/endpoint/guards.py", "contracts tools.called"),
    ),
    Row(
        id="tool-choice-required",
        area="tool calling",
        symptom="tool_choice required: an empty call, or none",
        patterns=(r"it calls no tool, and one must be called", r"was called, not .* with tool_choice required"),
        cause="b8672 and b9105 take required for auto; later builds force a call, whose arguments may be {}",
        fix="validate tool_calls and retry with a stricter system message: `Client.ask` does; or serve a newer build",
        source="guide 03: required; measured from b8672 to b11434",
        checks=("tasks/endpoint/guards.py", "contracts tools.required", "contracts tools.responses_required"),
    ),
    Row(
        id="tool-choice-named",
        area="tool calling",
        symptom="tool_choice with a function's name: another function is called, or none",
        patterns=(r"was called, not '\w+', with tool_choice \w+", r"Invalid tool_choice", r"no tool is called '"),
        cause="upstream reads tool_choice as a word only: an object is auto, without a word (llama.cpp issue 26535)",
        fix="send only that tool with required, as `Client.ask` does; patch 0002 mends the server",
        source="guide 03: specific named function; measured on b8672 and b11434",
        checks=("tasks/endpoint/guards.py", "contracts tools.named", "stage proof"),
    ),
    Row(
        id="tool-choice-none",
        area="tool calling",
        symptom="tool_choice none: raw tool tokens in the content",
        patterns=(
            r"<\|tool_call>",
            r"the raw tool token .* stands in the content",
            r"it calls a tool, and none may be called",
        ),
        cause="the parser is told to find no calls; the model is not told to make none",
        fix="reject such an answer and ask again without the tools: `Client.ask` does",
        source="guide 03: none; measured on b8672 and b11434",
        checks=("tasks/endpoint/guards.py", "contracts tools.none_clean"),
    ),
    # -- clients ------------------------------------------------------------------------------------------------
    Row(
        id="starting",
        area="client",
        symptom="503: the server is starting",
        patterns=(
            r"\"Loading model\"|'Loading model'|message\W+Loading model",
            r"unavailable_error",
            r"\b503 Service Unavailable",
            _status("503"),
            r"did not (come up|become healthy) in \d+ s",
        ),
        cause="a cold start: the model is being loaded, or a container restored; with no live one Modal says 503",
        fix="retry after 5 to 15 s, for as long as a cold start may take: `Client.ask` does. When it never ends, read "
        "the server's log (run/STAGE/servers in the store, or `modal app logs APP`)",
        source="guide 04; llama.cpp tools/server/server-http.cpp",
        checks=("doctor health", "contracts health.loading", "tasks/endpoint/chain.py"),
    ),
    Row(
        id="timeout",
        area="client",
        symptom="408 or a timeout: the answer takes too long",
        patterns=(
            r"APITimeoutError|ReadTimeout|Request timed out",
            r"the answer took too long",
            r"\b408 Request Timeout",
            _status("408"),
        ),
        cause="slow generation, or the client's timeout is shorter than a cold start",
        fix="raise the client's timeout to 120 s or more for the first request after idle, lower max_tokens, or stream",
        source="guide 04",
        checks=("tasks/endpoint/chain.py", "stage restore"),
    ),
    Row(
        id="empty-content",
        area="client",
        symptom="empty content, finish_reason length",
        patterns=(
            r"the answer is empty: ",
            r"\"content\": ?\"\".{0,200}\"finish_reason\": ?\"length\"",
            r"\"finish_reason\": ?\"length\".{0,200}\"content\": ?\"\"",
        ),
        cause="thinking used up max_tokens before the first word of the answer",
        fix="raise max_tokens, bound thought with thinking_budget_tokens, or turn it off for simple queries: "
        'chat_template_kwargs {"enable_thinking": false}',
        source="guide 04; measured on b8672 and b11434",
        checks=("tasks/endpoint/chain.py", "contracts thinking.answer_after_budget"),
    ),
    Row(
        id="context-overflow",
        area="client",
        symptom="400: the request exceeds the context size",
        patterns=(r"exceeds the available context size", r"exceed_context_size_error", r"context shift is disabled"),
        cause="the prompt is longer than one slot holds: --ctx-size is shared by the slots of --parallel",
        fix="send less, or raise server.ctx_per_slot (and have the GPU memory for it)",
        source="measured on b8672 and b11434",
        checks=("contracts settings.ctx_is_enforced", "contracts settings.ctx_per_slot"),
    ),
    Row(
        id="batch-too-small",
        area="client",
        symptom="the input is too large to process",
        patterns=(r"is too large to process\. increase the physical batch",),
        cause="embeddings and reranking need the whole input in one physical batch",
        fix="raise server.ubatch",
        source="llama.cpp tools/server/server-context.cpp",
        checks=("stage contracts",),
    ),
    Row(
        id="bad-json",
        area="client",
        symptom="400 or 500: the request is no JSON, or a field has the wrong type",
        patterns=(
            r"json\.exception\.(parse|type|out_of_range)_error",
            r"JSON schema (conversion failed|error at)",
            r"failed to parse grammar|error parsing grammar",
            r"Failed to parse (tools|messages)",
        ),
        cause="the request is wrong; older builds blame themselves (500) or take a default without a word",
        fix="correct the request; do not retry it",
        source="measured on b8672 and b11434: malformed JSON is a 500 there and a 400 here",
        checks=("contracts errors.malformed_json", "contracts errors.wrong_value"),
    ),
    Row(
        id="image-refused",
        area="client",
        symptom="image input is not supported",
        patterns=(r"image input is not supported", r"you may need to provide the mmproj"),
        cause="the server has no projector",
        fix="set server.mmproj to the projector that belongs to the model, and `llama-release upgrade --again`",
        source="measured on b8672 and b11434",
        checks=("doctor model", "contracts vision.sees"),
    ),
    Row(
        id="not-enabled",
        area="monitoring",
        symptom="501: metrics, embeddings or another endpoint is not there",
        patterns=(r"does not support (metrics endpoint|embeddings|slots endpoint)", r"not_supported_error"),
        cause="the server was started without the flag for it",
        fix="`server.metrics = true` for /metrics (it is the default here)",
        source="measured on b8672 and b11434",
        checks=("contracts metrics.names",),
    ),
    Row(
        id="connection-refused",
        area="client",
        symptom="nothing answers: connection refused",
        patterns=(
            r"Connection refused|ConnectError|All connection attempts failed",
            r"no answer from https?://",
            r"APIConnectionError",
        ),
        cause="nothing listens there: the server was stopped, its machine was started anew, or the address is another",
        fix="`llama-release status`, then `llama-release start`",
        source="guide 05; measured",
        checks=("doctor health",),
    ),
    Row(
        id="quantized-v-cache",
        area="deployment",
        symptom="a quantized V cache without flash attention: the context does not come up",
        patterns=(r"quantized V cache was requested, but this requires Flash Attention",),
        cause="llama.cpp keeps V in q8_0 or q4_0 for flash attention only",
        fix='serve with flash attention on (`server.flash_attention = "on"`), or server.kv_cache_type f16',
        source="llama.cpp src/llama-context.cpp",
        checks=("stage contracts",),
    ),
    # -- the server does not come up ----------------------------------------------------------------------------
    Row(
        id="model-incomplete",
        area="deployment",
        symptom="the model file is corrupted or incomplete",
        patterns=(
            r"model is corrupted or incomplete",
            r"data is not within the file bounds",
            r"invalid magic characters",
            r"is not whole in the store",
        ),
        cause="a download that broke off, a Git LFS pointer instead of the file, or a damaged disk",
        fix="fetch the file again and compare its sha256; `llama-release doctor` names what a stage lacks",
        source="measured on b8672 and b11434",
        checks=("doctor model", "doctor stages"),
    ),
    Row(
        id="model-missing",
        area="deployment",
        symptom="the model file is not there",
        patterns=(r"failed to open GGUF file", r"the file \S+ cannot be read", r"no model is set"),
        cause="the path is wrong, or the file is not on this machine",
        fix="correct server.model (or mmproj, chat_template) in llama-release.toml",
        source="measured on b11434",
        checks=("doctor model",),
    ),
    Row(
        id="mmproj-wrong",
        area="deployment",
        symptom="the multimodal projector does not load",
        patterns=(
            r"Failed to load CLIP model",
            r"failed to load multimodal model",
            r"CLIP cannot be used as main model",
        ),
        cause="server.mmproj is no projector, or a projector was given as the model",
        fix="take the mmproj file that was published with the model",
        source="measured on b8672 and b11434",
        checks=("doctor model",),
    ),
    Row(
        id="port-taken",
        area="machine",
        symptom="the port is taken",
        patterns=(r"couldn't bind HTTP server socket", r"port \d+ of \S+ can't be had", r"Address already in use"),
        cause="another process listens there, or the host is no address of this machine",
        fix="end the other one, or set local.staging_port / local.production_port (0: any free port)",
        source="measured on b8672 and b11434",
        checks=("stage staging",),
    ),
    Row(
        id="gpu-memory",
        area="machine",
        symptom="no memory is left, on the GPU or the machine",
        patterns=(
            r"cudaMalloc failed: out of memory",
            r"CUDA error: out of memory",
            r"failed to allocate (\S+ )?buffer",
            r"insufficient memory \(attempted to allocate",
            r"no snapshot: \d+ of \d+ MB of GPU memory",
        ),
        cause="weights and context do not fit, or other processes hold the memory; a snapshot needs headroom besides",
        fix="lower server.ctx_per_slot or server.slots, take server.kv_cache_type q8_0, or a larger modal.gpu",
        source="guide 05: monitor GPU memory headroom; measured on b8672 and b11434 (CPU); ggml-cuda.cu",
        checks=("stage restore", "modal_app/server.py"),
    ),
    Row(
        id="crashed",
        area="deployment",
        symptom="the server crashes",
        patterns=(
            r"core dumped",
            r"llama-server ended with -?\d+",
            r"llama-server of \S+ \(\w+\) died while it was asked|the server died",
        ),
        cause="the line does not say of what: a signal, or an exit of its own",
        fix="read the lines before it and after it, and the kernel's log (`dmesg` as root): a signal has a row of its "
        'own; `llama-release rollback --reason "..."` when it came with a release',
        source="measured on b8672",
        checks=("doctor crashes", "stage contracts", "stage restore"),
    ),
    Row(
        id="cuda-driver",
        area="upgrade",
        symptom="CUDA and the driver do not fit, or no GPU is found",
        patterns=(
            r"CUDA driver version is insufficient",
            r"no kernel image is available for execution",
            r"failed to initialize CUDA",
            r"no CUDA-capable device",
            r"libcuda\.so\.1: cannot open shared object",
            r"no usable GPU found",
        ),
        cause="the binary was compiled for another CUDA or another GPU than the one that serves",
        fix="pin both images to one CUDA release (modal.devel_image, modal.runtime_image) and set "
        "modal.cuda_architectures to the GPU's",
        source="guide 06: CUDA/driver coupling; ggml-cuda.cu",
        checks=("doctor images", "stage contracts"),
    ),
    Row(
        id="library-missing",
        area="upgrade",
        symptom="a shared library is missing where the binary runs",
        patterns=(
            r"error while loading shared libraries",
            r"version `GLIBC\w*_[\d.]+' not found",
            r"needs libraries that the runtime image does not have",
        ),
        cause="it was linked in another distribution than it runs in",
        fix="build and serve in images of one distribution; on Modal ldd is asked in the runtime image",
        source="guide 07: two-image strategy",
        checks=("doctor binaries", "stage build"),
    ),
    # -- snapshots and idle -------------------------------------------------------------------------------------
    Row(
        id="fell-back",
        area="monitoring",
        symptom="after idle the server boots cold instead of coming back from its snapshot",
        patterns=(
            r"\"kind\": ?\"fell_back\"|fell_back",
            r"exit(ed)?( with)?( status| code)*:? 222\b",
            r"was started without a snapshot",
        ),
        cause="the restore failed and the container was started again without a snapshot: a 200 proves nothing",
        fix="`llama-release history` and the restore row of the Prefect page say when it began; mapped weights "
        "(server.memory_map) and unified memory break snapshots; `llama-release redeploy` takes a new one",
        source="guide 05: alert on repeated restore failures; Modal 1.6: a failed restore exits 222",
        checks=("stage restore",),
    ),
    Row(
        id="criu",
        area="machine",
        symptom="CRIU cannot dump or restore here",
        patterns=(
            r"CRIU (needs|can't|did not|doesn't|\S+ doesn't)",
            r"there is no CRIU",
            r"sockets: Can't get 1:16 opt",
        ),
        cause="CRIU is missing, too old for this kernel (Linux 6.16 needs CRIU 4.2), or not allowed in this container",
        fix='`.ci/install-criu` as root, or `local.snapshots = "off"` and `restore.accept_cold = true`',
        source="measured: CRIU 4.1 and 4.2 on Linux 6.18",
        checks=("doctor snapshots",),
    ),
    Row(
        id="mmap-snapshot",
        area="deployment",
        symptom="a snapshot is refused because of memory-mapped weights",
        patterns=(r"mmap failed:", r"failed to mlock"),
        cause="mapped or locked files break checkpoint and restore",
        fix="`server.memory_map = false` (it is the default here): --load-mode none, --no-mmap before b10884",
        source="guide 07: --no-mmap for CRIU compatibility",
        checks=("doctor argv", "stage preflight"),
    ),
    Row(
        id="key-newer-than-snapshot",
        area="deployment",
        symptom="the new API key is refused, the old one works",
        patterns=(r"the API key is newer than the snapshot", r"was deployed with another key"),
        cause="a restored server has the environment that it was snapshotted with",
        fix="`llama-release redeploy` takes a new snapshot with the new key",
        source="Modal 1.6: restore renews the environment of the Python process only",
        checks=("doctor production", "doctor staging"),
    ),
    # -- upgrades -----------------------------------------------------------------------------------------------
    Row(
        id="patch-conflict",
        area="upgrade",
        symptom="a patch no longer applies",
        patterns=(
            r"error: patch failed: ",
            r"patch does not apply",
            r"\.patch \(.*\) is (in conflict|broken|source_moved)",
            r"\d+ conflict markers are left",
        ),
        cause="upstream changed the lines that the patch changes, or has its effect by now",
        fix="`llama-release patches edit FILE --to bN`, or `llama-release patches retire FILE` when upstream has it",
        source="guide 06: patch no longer applies cleanly",
        checks=("stage patches", "stage proof"),
    ),
    Row(
        id="field-gone",
        area="upgrade",
        symptom="a request field, route or environment variable that was used is gone",
        patterns=(r"newly broken, ", r"File Not Found|not_found_error", r"set here is not read"),
        cause="the new server's API differs: most of upstream's renames have no alias",
        fix="read the surface table of the preflight stage; `llama-release plan --to bN` beforehand",
        source="guide 06: new server rejects old API fields; measured between b8672, b9105, b10605 and b11434",
        checks=("stage preflight", "stage contracts"),
    ),
    Row(
        id="quality-regressed",
        area="upgrade",
        symptom="the server is well and its answers are worse",
        patterns=(r"evals (failed|inconclusive)", r"points \[[-+\d., ]+\], margin"),
        cause="kernels, tokenizer, template or quantization changed",
        fix='`llama-release rollback --reason "..."` when it is in production; the evals row shows what got worse',
        source="guide 06: restore works but quality regressed",
        checks=("stage evals",),
    ),
    Row(
        id="on-hold",
        area="upgrade",
        symptom="production is on hold",
        patterns=(r"production is on hold",),
        cause="somebody rolled production back; nothing is promoted until a person lifts the hold",
        fix="`llama-release hold lift`",
        source="this project: promotion",
        checks=("doctor stages", "stage production"),
    ),
    Row(
        id="moved-since-approval",
        area="upgrade",
        symptom="an approval is refused: production or the dossier changed",
        patterns=(r"(production moved|the dossier changed) since the approval", r"may not be promoted"),
        cause="a promotion names what it replaces and what was approved; one of them is another by now",
        fix="`llama-release upgrade` again: what is verified is kept, and it asks anew",
        source="this project: promotion is a compare-and-swap",
        checks=("stage production",),
    ),
    Row(
        id="nobody-decided",
        area="upgrade",
        symptom="nobody decided in time",
        patterns=(r"nobody decided on dossier", r"paused and never resumed"),
        cause="the approval's time ran out",
        fix="`llama-release upgrade` asks again; approval.timeout_s says how long a person has",
        source="this project: approval; Prefect 3.8",
        checks=("stage production",),
    ),
    Row(
        id="lock-held",
        area="machine",
        symptom="another process holds the lock",
        patterns=(r"another process holds the lock", r"another release is being deployed"),
        cause="another upgrade, rollback or probe is at work",
        fix="wait for it; `llama-release doctor` names who it is. A lock goes with its process",
        source="this project: store",
        checks=("doctor locks",),
    ),
    # -- Modal, Prefect, the machine ----------------------------------------------------------------------------
    Row(
        id="modal-token",
        area="machine",
        symptom="Modal does not know the token",
        patterns=(
            r"Modal does not know this token",
            r"Token missing\. Could not authenticate",
            r"modal\.exception\.AuthError",
        ),
        cause="there is no token on this machine, or it was revoked",
        fix="`modal token new`, or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET",
        source="Modal 1.6",
        checks=("doctor account",),
    ),
    Row(
        id="modal-secret",
        area="machine",
        symptom="the Modal Secret with the API key is not there",
        patterns=(
            r"the Modal Secret with the API key is not there",
            r"Secret is missing key",
        ),
        cause="modal.secret names a Secret that this environment does not have, or that lacks LLAMA_API_KEY",
        fix="`modal secret create NAME LLAMA_API_KEY=...`, with the name that modal.secret says",
        source="Modal 1.6",
        checks=("doctor secret",),
    ),
    Row(
        id="modal-unreachable",
        area="machine",
        symptom="Modal cannot be reached",
        patterns=(r"Modal cannot be reached at", r"Could not connect to the Modal server"),
        cause="the network, a proxy, or Modal itself",
        fix="look at status.modal.com and run it again: nothing was changed",
        source="Modal 1.6: an unreachable control plane costs the SDK most of a minute",
        checks=("doctor account",),
    ),
    Row(
        id="modal-image",
        area="machine",
        symptom="a Modal image does not build",
        patterns=(r"Image build for im-\w+ (failed|terminated)", r"Modal could not build the image"),
        cause="a package or base image that is gone, or that does not fit",
        fix="read the last lines of the build; pin anew what is gone (modal.devel_image, modal.runtime_image)",
        source="Modal 1.6",
        checks=("stage build",),
    ),
    Row(
        id="modal-limit",
        area="machine",
        symptom="a limit of the Modal workspace was met",
        patterns=(r"a limit of the Modal workspace was met", r"ResourceExhaustedError"),
        cause="GPU quota, budget or rate limit",
        fix="raise it on Modal's usage page, or wait, and run it again",
        source="Modal 1.6",
        checks=("stage staging",),
    ),
    Row(
        id="prefect-versions",
        area="machine",
        symptom="the Prefect server does not start",
        patterns=(
            r"Body\(\) got an unexpected keyword argument 'min_items'",
            r"No module named 'sqlalchemy\.dialects\.postgresql\.operators'",
            r"the Prefect server did not start",
            r"Failed to reach API at",
        ),
        cause="a FastAPI or SQLAlchemy that this Prefect does not bear; or PREFECT_API_URL names a dead server",
        fix="install with `pip install -c constraints.txt .`; unset PREFECT_API_URL to have one started",
        source="measured: Prefect 3.8 with FastAPI 0.151; Prefect 3.9 with SQLAlchemy 2.0.15",
        checks=("stage upstream",),
    ),
    Row(
        id="disk-full",
        area="machine",
        symptom="the disk is full",
        patterns=(r"No space left on device", r"could not write \S+", r"Disk quota exceeded"),
        cause="builds, snapshots (as large as the server's memory) and the compiler cache",
        fix="remove the cache (it is safe to delete) or give the store a larger disk",
        source="this project: store",
        checks=("doctor disk",),
    ),
    Row(
        id="compiler",
        area="machine",
        symptom="no C++ compiler",
        patterns=(
            r"(c\+\+|g\+\+|cmake|nvcc|git) is not on this machine",
            r"no compiler that works",
            r"No CMAKE_CXX_COMPILER could be found",
            r"CMAKE_CUDA_COMPILER",
        ),
        cause="the local platform compiles here",
        fix="`apt install g++` (CUDA builds: the CUDA toolkit)",
        source="measured",
        checks=("doctor toolchain",),
    ),
    Row(
        id="github-limit",
        area="machine",
        symptom="GitHub does not answer, or its rate limit is used up",
        patterns=(r"GitHub's rate limit is used up", r"GitHub does not answer", r"API rate limit exceeded"),
        cause="60 requests an hour without a token",
        fix="set GITHUB_TOKEN (upstream.token_env), or wait",
        source="GitHub REST API: rate limits",
        checks=("stage upstream",),
    ),
    Row(
        id="slack",
        area="monitoring",
        symptom="people are not told",
        patterns=(r"Slack (refused it|does not answer)", r"(invalid_auth|channel_not_found|not_in_channel)"),
        cause="the token or the channel is wrong, or Slack is away; what was not sent is kept",
        fix="check notify.slack_channel and the token; the next run sends what is left",
        source="Slack Web API: chat.postMessage errors",
        checks=("doctor outbox",),
    ),
    # -- signals that need watching -----------------------------------------------------------------------------
    Row(
        id="queue",
        area="monitoring",
        symptom="requests wait for a slot",
        patterns=(r"^llamacpp:requests_deferred [1-9]", r"no slot (is )?available"),
        cause="more requests at once than server.slots",
        fix="raise server.slots (each takes its context's memory), or modal.max_containers; watch "
        "llamacpp:requests_deferred and llamacpp:predicted_tokens_seconds on /metrics",
        source="guide 05: scrape /metrics for queue depth; llama.cpp tools/server/README.md /metrics",
        checks=("contracts metrics.names",),
    ),
    Row(
        id="errors-after-idle",
        area="monitoring",
        symptom="5xx answers, above all after idle windows",
        patterns=(
            r"\b50[024] (Internal Server Error|Bad Gateway|Gateway Time)",
            _status("50[024]"),
            r"\"kind\": ?\"crashed\"",
        ),
        cause="a restore that failed, a server that died of memory, or a request that an older build blames itself for",
        fix='`llama-release history`, then the log of the stage; `llama-release rollback --reason "..."` if need be',
        source="guide 05: a spike in 5xx after idle points to restore or OOM",
        checks=("stage restore", "contracts health.ok"),
    ),
)


class Match(Model):
    """A symptom that a text shows."""

    row: Row
    line: str = Field(description="the first line that shows it")
    at: int = Field(description="number of that line, from 1")
    count: int = Field(description="how many lines show it")


COLLECT = (
    "`llama-release doctor --json`",
    "`llama-release status --json` and `llama-release history --last 20 --json`",
    "the last 200 lines of the server's log: `llama-release status` names the store, it is under run/STAGE/servers; on "
    "Modal `modal app logs APP`",
    "the request and the whole answer, without the key: `curl -si URL ...`",
    "`llama-server --version` of the binary that serves, and its argv (without --api-key)",
)
"""What to collect when no row is known: without these nobody can say more."""

_SECRET = re.compile(r"(?i)(bearer\s+|api[_-]?key[\"']?\s*[ :=]\s*[\"']?)[^\s\"',]{6,}")
_COMPILED = [(row, [re.compile(pattern, re.IGNORECASE) for pattern in row.patterns]) for row in RUNBOOK]


def explain(lines: Iterable[str]) -> list[Match]:
    """The symptoms that these lines show, in the order in which they first appear, each once. A line counts for the
    first row that knows it."""
    found: dict[str, Match] = {}
    for at, line in enumerate(lines, 1):
        said = pieces(line)
        row = next((row for row, patterns in _COMPILED if any(p.search(s) for s in said for p in patterns)), None)
        if row is None:
            continue
        known = found.get(row.id)
        found[row.id] = (
            known.model_copy(update={"count": known.count + 1})
            if known
            else Match(row=row, line=_SECRET.sub(r"\1***", line.strip()), at=at, count=1)
        )
    return list(found.values())


def rows_of(check: str) -> list[Row]:
    """The rows that a check catches, such as `doctor budget`."""
    return [row for row in RUNBOOK if check in row.checks]
