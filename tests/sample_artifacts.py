"""Small artifacts for tests: the model is a C function, so no kernels are needed."""

from pathlib import Path

from qcompile.artifact import Artifact, ArtifactSpec, TensorInfo, build_artifact
from qcompile.runtime.toolchain import compile_c
from qcompile.targets import get_target

# y[i] = x[i] * w[i], through the arena
MULTIPLY = """
#include <stdint.h>
int32_t qc_main(const void *const *in, void *const *out, uint8_t *arena, const uint8_t *weights) {
    const int8_t *x = in[0], *w = (const int8_t *)weights;
    int32_t *products = (int32_t *)arena, *y = out[0];
    for (int i = 0; i < 24; i++) products[i] = x[i] * w[i];
    for (int i = 0; i < 24; i++) y[i] = products[i];
    return 0;
}
"""
# y[i] = x[i] squared, in 16 parallel pieces by TVM's slot
PARALLEL = """
#include <stdint.h>
typedef struct { void *sync; int32_t num_task; } environment;
typedef int32_t (*lambda_t)(int32_t, environment *, void *);
int32_t (*__TVMBackendParallelLaunch)(lambda_t, void *, int32_t);
typedef struct { const uint8_t *x; int32_t *y; } closure;
static int32_t piece(int32_t index, environment *e, void *argument) {
    closure *c = argument;
    int32_t length = (4096 + e->num_task - 1) / e->num_task, first = index * length;
    for (int32_t i = first; i < first + length && i < 4096; i++) c->y[i] = c->x[i] * c->x[i];
    return 0;
}
int32_t qc_main(const void *const *in, void *const *out, uint8_t *arena, const uint8_t *weights) {
    closure c = {in[0], out[0]};
    (void)arena, (void)weights;
    for (int repeat = 0; repeat < 20; repeat++)
        if (__TVMBackendParallelLaunch(piece, &c, repeat % 2 ? 16 : 0)) return 1;
    return 0;
}
"""
WEIGHTS = bytes(range(244, 256)) + bytes(range(12))
INPUT = TensorInfo("input/x", "int8", (1, 24), 0.5, 3)
OUTPUT = TensorInfo("y", "int32", (1, 24), 0.25, 0)


def c_object(source: str, folder: Path, target: str = "host", flags: tuple[str, ...] = ()) -> bytes:
    """The object file of C ``source`` for the target called ``target``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "main.c").write_text(source)
    compile_c(folder, "main.c", "main.o", get_target(target).triple, flags)
    return (folder / "main.o").read_bytes()


def multiply_spec(
    folder: Path, target: str = "host", source: str = MULTIPLY, name: str = "multiply", flags: tuple[str, ...] = ()
) -> ArtifactSpec:
    """An int8 model of one input and one output of 24 elements."""
    return ArtifactSpec(
        name, get_target(target), [c_object(source, folder, target, flags)], WEIGHTS, 96, [INPUT], [OUTPUT], macs=24
    )


def build_multiply(folder: Path, target: str = "host", source: str = MULTIPLY, flags: tuple[str, ...] = ()) -> Artifact:
    """Writes the artifact of `multiply_spec` below ``folder``."""
    return build_artifact(multiply_spec(folder / "objects", target, source, flags=flags), folder / "build")


def build_parallel(folder: Path, target: str = "host") -> Artifact:
    """Writes an artifact with parallel loops: y = x squared, 4096 elements."""
    spec = ArtifactSpec(
        "squares",
        get_target(target),
        [c_object(PARALLEL, folder, target)],
        b"",
        0,
        [TensorInfo("x", "uint8", (4096,))],
        [TensorInfo("y", "int32", (4096,))],
    )
    return build_artifact(spec, folder / "build")
