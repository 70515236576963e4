# ruff: noqa: INP001  # a script of the build, in no package
"""Writes what derives from the table of hooks: `hooks.py TABLE DIRECTORY`, or `hooks.py --names|--markdown TABLE`.

Into the directory go `hooks.h` (indices and types), `hooks.c` (the exported functions, and the table that routing
reads), `stubs.S` (the exported functions of launches with arguments on the stack) and `xcuda.map` (the version script).
With `--names`, prints each hook with its index, as in `last_error_call`; with `--markdown`, the page about them of the
documentation. A part of the build, not of the distribution.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

KINDS = {"launch": 2, "pass": 1, "read": 2, "sync": 1, "begin": 1, "end": 1, "call": 1, "nvml": 1, "libc": 0}
"""Number of details that each kind has."""

REGISTERS = ("%rdi", "%rsi", "%rdx", "%rcx", "%r8", "%r9")
"""Where the first arguments lie, by the calling convention of x86-64; all are integers or pointers."""

IN_ASSEMBLER = {
    "work_kernel(f, gridDimX, gridDimY, gridDimZ)": "WORK_KERNEL",
    "work_configured(config, f)": "WORK_CONFIGURED",
    "work_graph(hGraphExec)": "WORK_GRAPH",
    "work_copy(ByteCount)": "WORK_SIZED 1, {ByteCount}, 1",
    "work_set(N)": "WORK_SIZED 2, {N}, 1",
    "work_set(N * 2)": "WORK_SIZED 2, {N}, 2",
    "work_set(N * 4)": "WORK_SIZED 2, {N}, 4",
}
"""What stub.h calls it; arguments by their places, or where the macro knows them to be."""


class Hook(NamedTuple):
    kind: str
    name: str
    parameters: str
    details: list[str]

    @property
    def arguments(self) -> str:
        """The names of the parameters, to pass them on."""
        if self.parameters == "void":
            return ""
        return ", ".join(part.split()[-1].lstrip("*") for part in self.parameters.split(","))

    @property
    def places(self) -> dict[str, str]:
        """Where the arguments lie at the call."""
        names = self.arguments.split(", ")
        on_stack = [f"{8 * (i + 1)}(%rsp)" for i in range(len(names) - len(REGISTERS))]
        return dict(zip(names, [*REGISTERS, *on_stack], strict=False))

    @property
    def stubbed(self) -> bool:
        """Whether the exported function is one of stub.h."""
        return self.kind == "launch" and (self.in_assembler or self.places.get(self.details[0], "").endswith("(%rsp)"))

    @property
    def in_assembler(self) -> bool:
        """Whether the short way of a launch is one of stub.h, too."""
        return self.kind == "launch" and self.details[1] in IN_ASSEMBLER

    @property
    def stand_in(self) -> str:
        """The call of the function that stands in, if there is one."""
        if self.kind not in {"call", "nvml", "pass"} or self.details[0] == "DRIVER":
            return ""
        arguments = f", {self.arguments}" if self.arguments else ""
        return f"{self.details[0]}(HOOK_{self.name}{arguments})"

    @property
    def real(self) -> str:
        """The call of the driver's own function."""
        return f"REAL({self.name})({self.arguments})"

    @property
    def named(self) -> tuple[str, str]:
        """The stream as the program names it, and what it means by NULL."""
        own = "CU_STREAM_PER_THREAD" if self.name.endswith(("_ptsz", "_ptds")) else "CU_STREAM_LEGACY"
        return self.details[0], own

    @property
    def stream(self) -> str:
        """The stream as an explicit handle."""
        if self.details[0] in {"ALL", "EVENT"}:
            return "STREAM_ALL"
        name, if_null = self.named
        return if_null if name == "NULL" else f"stream_named({name}, {if_null})"

    @property
    def beacon_stream(self) -> str:
        """The stream as an online process counts it: each thread's own has a name, and NULL stays NULL."""
        if self.named[1] == "CU_STREAM_LEGACY":
            return self.details[0]
        return self.stream.replace("CU_STREAM_PER_THREAD", "BEACON_OWN_STREAM")


def read(path: Path) -> list[Hook]:
    hooks = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        kind, names, *rest = (field.strip() for field in line.split("|"))
        if KINDS.get(kind) != max(len(rest) - 1, 0):
            raise SystemExit(f"{path}:{number}: a line of kind {kind!r} cannot have {len(rest)} fields after the name")
        first, *suffixes = (name.strip() for name in names.split(","))
        parameters, *details = rest or [""]
        hooks += [Hook(kind, first + suffix, parameters, details) for suffix in ("", *suffixes)]
    return hooks


def observed(hook: Hook) -> str:
    """What a hook does in an online process. Nothing but jumps out of a launch: its arguments stay where they are."""
    if hook.kind == "launch":
        return (
            f"    if (__builtin_expect(!beacon_count({hook.beacon_stream}), 0))\n"
            f"        return slow_{hook.name}({hook.arguments});\n"
            f"    return {hook.real};\n"
        )
    waits = {"ALL": "all(&wait)", "EVENT": "event(&wait, hEvent)"}
    told = f"{hook.details[1]} == 0 ? CUDA_ERROR_NOT_READY : result" if hook.kind == "read" else "result"
    return (
        "    struct beacon_wait wait;\n"
        f"    beacon_wait_{waits.get(hook.details[0], f'stream(&wait, {hook.stream})')};\n"
        f"    CUresult result = {hook.real};\n"
        f"    beacon_waited(&wait, {told});\n"
        "    return result;\n"
    )


def slow(hook: Hook) -> str:
    """The long way of a launch, apart: the short one, which hands its arguments over where they are, stays short."""
    if hook.kind != "launch":
        return ""
    named, if_null = hook.named
    linkage = "STUBBED" if hook.stubbed else "static"
    return (
        f"{linkage} SLOW CUresult slow_{hook.name}({hook.parameters}) {{\n"
        "    if (beacon_on()) {\n"
        f"        beacon_count_slowly({hook.beacon_stream});\n"
        f"        return {hook.real};\n"
        "    }\n"
        f"    uint64_t work = {hook.details[1]};\n"
        f"    struct lane *lane = launch_admit({named}, {if_null}, work);\n"
        "    bool passes = work == 0 && passage_enter();\n"
        f"    CUresult result = launch_settle(lane, HOOK_{hook.name}, {hook.real});\n"
        "    passage_leave(passes);\n"
        "    return result;\n"
        "}\n\n"
    )


def gated(hook: Hook) -> str:
    """What a hook does in a job, or in a program of nobody's."""
    index = f"HOOK_{hook.name}"
    if hook.kind == "launch":
        named, if_null = hook.named
        return (
            f"    struct lane *lane = launch_enter({named}, {if_null}, {hook.details[1]});\n"
            "    if (__builtin_expect(lane == NULL, 0))\n"
            f"        return slow_{hook.name}({hook.arguments});\n"
            f"    CUresult result = {hook.real};\n"
            "    lane_leave(lane);\n"
            f"    return __builtin_expect(result == CUDA_SUCCESS, 1) ? result : launch_failed({index}, result);\n"
        )
    if hook.kind in {"call", "nvml"}:
        return f"    return {hook.stand_in};\n"
    result = f"    CUresult result = {hook.stand_in or hook.real};\n"
    if hook.kind in {"pass", "read"}:
        result = f"    bool passes = passage_enter();\n{result}    passage_leave(passes);\n"
    if hook.kind == "pass":
        return f"{result}    return result;\n"
    entered = "sync" if hook.kind == "read" else hook.kind
    bytes_read = f", {hook.details[1]}" if hook.kind == "read" else ""
    return (
        f"    CUstream named = {hook.stream};\n"
        f"    {entered}_enter(named);\n"
        f"{result}"
        f"    return {hook.kind}_leave(named, {index}, result{bytes_read});\n"
    )


def function(hook: Hook) -> str:
    """The exported function. What it does in a job is apart, so that neither way sets up what the other needs."""
    exported = f"EXPORT CUresult {hook.name}({hook.parameters}) {{\n"
    if hook.kind not in {"launch", "read", "sync"}:
        return f"{exported}{gated(hook)}}}\n\n"
    whole = (
        f"{exported}    if (!beacon_on())\n        return gated_{hook.name}({hook.arguments});\n{observed(hook)}}}\n\n"
    )
    gate = f"APART CUresult gated_{hook.name}({hook.parameters}) {{\n{gated(hook)}}}\n\n"
    if not hook.stubbed:
        return f"{slow(hook)}static {gate}{whole}"
    in_c = [f"STUBBED {gate}", whole] if not hook.in_assembler else [f"static {gate}{whole}"]
    declared = f"CUresult {hook.name}({hook.parameters});"
    stubbed = f"#if STUBS\n{declared}\n#else\n{in_c.pop().rstrip()}\n#endif\n\n"
    return f"{slow(hook)}{''.join(in_c)}{stubbed}"


def stub(hook: Hook, index: int) -> str:
    stream = hook.details[0]
    place = "$0" if stream == "NULL" else hook.places.get(stream, "STUB_CONFIG")
    own = int(hook.named[1] == "CU_STREAM_PER_THREAD")
    if not hook.in_assembler:
        return f"    STUB {hook.name}, {index}, {place}, {own}\n"
    work = IN_ASSEMBLER[hook.details[1]].format(**hook.places)
    stack = max(0, len(hook.places) - len(REGISTERS))
    return f"    LAUNCH {hook.name}, {index}, {place}, {own}, {stack}, {work}\n"


def stubs(hooks: list[Hook]) -> str:
    """Assembler: see stub.h."""
    lines = "".join(stub(hook, index) for index, hook in enumerate(hooks) if hook.stubbed)
    return (
        "/* Written by hooks.py from hooks.table. */\n"
        f'#include "stub.h"\n\n#if STUBS\n{lines}#endif\n\n'
        '    .section .note.GNU-stack, "", %progbits\n'
    )


def header(hooks: list[Hook]) -> str:
    indices = "".join(f"    HOOK_{hook.name},\n" for hook in hooks)
    types = "".join(f"typedef CUresult (*fn_{hook.name})({hook.parameters});\n" for hook in hooks)
    handlers = {hook.details[0]: hook for hook in hooks if hook.stand_in}
    called = "".join(f"CUresult {name}(enum hook_index hook, {hook.parameters});\n" for name, hook in handlers.items())
    return (
        "/* Written by hooks.py from hooks.table. */\n#ifndef XCUDA_HOOKS_H\n#define XCUDA_HOOKS_H\n\n"
        '#include "cuda_types.h"\n\n'
        f"enum hook_index {{\n{indices}    HOOK_COUNT,\n}};\n\n{types}\n{called}\n#endif\n"
    )


def source(hooks: list[Hook]) -> str:
    entries = "".join(f'    {{"{hook.name}", (void *){hook.name}}},\n' for hook in hooks)
    functions = "".join(function(hook) for hook in hooks)
    names = ("beacon", "capture", "driver", "launch", "passage", "stub", "sync", "work")
    modules = "".join(f'#include "{name}.h"\n' for name in names)
    return (
        f"/* Written by hooks.py from hooks.table. */\n{modules}\n"
        "#define APART __attribute__((noinline))\n"
        "#define SLOW APART __attribute__((cold))\n"
        "#if STUBS\n#define STUBBED HIDDEN\n#else\n#define STUBBED static\n#endif\n\n"
        f"{functions}"
        f"const struct hook hook_table[HOOK_COUNT] = {{\n{entries}}};\n"
    )


def version_script(names: list[str]) -> str:
    listed = "".join(f"        {name};\n" for name in names)
    return f"{{\n    global:\n{listed}    local:\n        *;\n}};\n"


IN_A_JOB = {
    "launch": "waits at the gate; counts in window, budget and estimates",
    "pass": "goes to the driver at once, until the process is to end",
    "read": "as `pass`, and as `sync`",
    "sync": "goes to the driver; what it shows to be complete leaves the window",
    "begin": "goes to the driver; what is launched into the stream until `end` is not executed, and not held",
    "end": "see `begin`",
    "call": "what its handler does: memory is charged, and told as the quota has it; functions are routed",
    "nvml": "tells of the job's device as the quota has it",
    "libc": "finds hooks as well as functions; or keeps the dispositions of SIGTERM and SIGINT",
}

IN_AN_ONLINE_PROCESS = {
    "launch": "is counted",
    "read": "shows what is complete",
    "sync": "shows what is complete",
    "libc": "finds hooks as well as functions",
}

KNOWN_BY = {
    "work_kernel": "function, grid",
    "work_configured": "function, grid",
    "work_listed": "function, grid",
    "work_graph": "graph",
    "work_set": "bytes",
    "work_copy": "bytes",
    "work_copy2d": "bytes, unless one side is the host",
    "work_copy3d": "bytes, unless one side is the host",
    "work_copies": "bytes",
    "work_batch": "number of operations",
}


def about(kind: str, details: list[str]) -> str:
    """What an entry of the table says beyond its kind, for people."""
    if kind == "launch":
        return f"estimated by {KNOWN_BY[details[1].partition('(')[0]]}"
    if kind in {"call", "nvml"} or (kind == "pass" and details[0] != "DRIVER"):
        return f"`{details[0]}`"
    return ""


def markdown(table: str) -> str:
    lines = [
        "# Calls that xCUDA stands in front of",
        "",
        "Written by `make -C xcuda-preload reference` from the table that the library is built from,",
        "[`hooks.table`](../../xcuda-preload/src/hooks.table). Calls that are not here go to the driver as if the",
        "library were not there; why each of those needs no hook is written in",
        "[`test_exports.py`](../../xcuda-preload/tests/test_exports.py).",
        "",
        "| Kind | In a job, a call | In an online process, it |",
        "| --- | --- | --- |",
        *(f"| `{kind}` | {what} | {IN_AN_ONLINE_PROCESS.get(kind, '')} |" for kind, what in IN_A_JOB.items()),
    ]
    for line in table.splitlines():
        if line.startswith("# ----"):
            title = line.removeprefix("# ---- ")
            lines += ["", f"## {title[0].upper()}{title[1:]}", "", "| Calls | Kind | |", "| --- | --- | --- |"]
        elif line.strip() and not line.startswith("#"):
            kind, names, *rest = (field.strip() for field in line.split("|"))
            first, *suffixes = (name.strip() for name in names.split(","))
            calls = " ".join(f"`{first}{suffix}`" for suffix in ("", *suffixes))
            lines.append(f"| {calls} | `{kind}` | {about(kind, rest[1:])} |".replace("|  |", "| |"))
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--markdown"]:
        sys.stdout.write(markdown(Path(arguments[1]).read_text()))
        return
    if arguments[:1] == ["--names"]:
        ours = [hook for hook in read(Path(arguments[1])) if hook.kind != "libc"]
        sys.stdout.writelines(f"{index} {hook.name}\n" for index, hook in enumerate(ours))
        return
    table, directory = (Path(argument) for argument in arguments)
    hooks = read(table)
    ours = [hook for hook in hooks if hook.kind != "libc"]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "hooks.h").write_text(header(ours))
    (directory / "hooks.c").write_text(source(ours))
    (directory / "stubs.S").write_text(stubs(ours))
    (directory / "xcuda.map").write_text(version_script([hook.name for hook in hooks]))


if __name__ == "__main__":
    main(sys.argv[1:])
