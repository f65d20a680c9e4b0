"""The same calls with the time between them: what `qbench --profile` runs. The kernels are those of the artifact."""

from __future__ import annotations

from qcompile.codegen.emit_c import Generated, compile_main, main_source
from qcompile.targets import CpuTarget

# Both wait for the instructions before them, so that a kernel is charged with all of its own work.
_NOW = """static uint64_t now(void) {
#if defined(__x86_64__)
    uint32_t low, high;
    __asm__ volatile("lfence\\n\\trdtsc" : "=a"(low), "=d"(high) : : "memory");
    return (uint64_t)high << 32 | low;
#else
    uint64_t ticks;
    __asm__ volatile("isb\\n\\tmrs %0, cntvct_el0" : "=r"(ticks) : : "memory");
    return ticks;
#endif
}"""


def timed_objects(code: Generated, outputs: int, target: CpuTarget) -> list[bytes]:
    """`code.objects` with a qc_main that has one output more, after the program's `outputs`: uint64[calls + 1].

    It holds the time stamp counter before each call of `code.listing` and after the last. Only for CPUs that run
    natively; the ticks of the counter are no CPU cycles.
    """
    statements = [f"uint64_t *ticks = outputs[{outputs}];"]
    for index, call in enumerate(code.listing):
        statements += [f"ticks[{index}] = now();", call.code]
    statements.append(f"ticks[{len(code.listing)}] = now();")
    source = main_source([*code.declarations, _NOW], statements)
    return [*code.objects[:-1], compile_main(source, target)]
