/* Runs a model written by qcompile from C.  In this folder:
 *
 *     DIR=../../build/NAME-host NAME=NAME
 *     python -m ziglang cc -O2 -std=c11 -DMODEL=$NAME -DHEADER="\"$NAME.h\"" -I$DIR main.c $DIR/lib$NAME.so \
 *         -Wl,-rpath,$DIR -o main
 *     ./main [one file of raw input values per input, else zeros]
 *
 * For a board: -target aarch64-linux-gnu, and copy `main` and the library there. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include HEADER

#define JOIN2(a, b) a##b
#define JOIN(a, b) JOIN2(a, b)
#define MODEL_RUN JOIN(MODEL, _run)
#define MODEL_INFO JOIN(MODEL, _info)
#define MODEL_ARENA_BYTES JOIN(MODEL, _arena_bytes)

static const struct { const char *name; size_t bytes; } TYPES[] = {
    [QC_BOOL] = {"bool", 1},   [QC_INT8] = {"int8", 1},     [QC_UINT8] = {"uint8", 1},
    [QC_INT16] = {"int16", 2}, [QC_UINT16] = {"uint16", 2}, [QC_INT32] = {"int32", 4},
    [QC_UINT32] = {"uint32", 4}, [QC_INT64] = {"int64", 8}, [QC_UINT64] = {"uint64", 8},
};

static size_t elements(const qc_tensor_info *t) {
    size_t n = 1;
    for (int i = 0; i < t->rank; i++) n *= (size_t)t->dims[i];
    return n;
}

/* Zeroed memory on a 64-byte boundary, as the model asks of every buffer. */
static void *buffer(size_t bytes) {
    size_t rounded = (bytes + 63) / 64 * 64;
    void *memory = aligned_alloc(64, rounded ? rounded : 64);
    if (!memory) exit(1);
    return memset(memory, 0, rounded);
}

static long long value(const void *data, qc_dtype type, size_t i) {
    switch (type) {
    case QC_INT8: return ((const int8_t *)data)[i];
    case QC_INT16: return ((const int16_t *)data)[i];
    case QC_UINT16: return ((const uint16_t *)data)[i];
    case QC_INT32: return ((const int32_t *)data)[i];
    case QC_UINT32: return ((const uint32_t *)data)[i];
    case QC_INT64: case QC_UINT64: return ((const int64_t *)data)[i];
    default: return ((const uint8_t *)data)[i];
    }
}

int main(int argc, char **argv) {
    const qc_model_info *model = MODEL_INFO();
    const void **inputs = calloc((size_t)model->num_inputs, sizeof *inputs);
    void **outputs = calloc((size_t)model->num_outputs, sizeof *outputs);
    if (!inputs || !outputs) return 1;
    for (int i = 0; i < model->num_inputs; i++) {
        const qc_tensor_info *t = &model->inputs[i];
        size_t bytes = elements(t) * TYPES[t->dtype].bytes;
        void *data = buffer(bytes);
        FILE *file = i + 1 < argc ? fopen(argv[i + 1], "rb") : NULL;
        if (i + 1 < argc && (!file || fread(data, 1, bytes, file) != bytes)) {
            fprintf(stderr, "%s: need %zu bytes of %s for input %s\n", argv[i + 1], bytes, TYPES[t->dtype].name, t->name);
            return 1;
        }
        if (file) fclose(file);
        inputs[i] = data;
    }
    for (int i = 0; i < model->num_outputs; i++)
        outputs[i] = buffer(elements(&model->outputs[i]) * TYPES[model->outputs[i].dtype].bytes);

    clock_t start = clock();
    int error = MODEL_RUN(inputs, outputs, buffer(MODEL_ARENA_BYTES()));
    double microseconds = 1e6 * (double)(clock() - start) / CLOCKS_PER_SEC;
    if (error) {
        fprintf(stderr, "%s: error %d\n", model->name, error);
        return 1;
    }
    printf("%s for %s: %.0f us\n", model->name, model->target, microseconds);
    for (int i = 0; i < model->num_outputs; i++) {
        const qc_tensor_info *t = &model->outputs[i];
        size_t along = 1;                                  /* elements from one index of the axis to the next */
        for (int d = t->axis + 1; d < t->rank; d++) along *= (size_t)t->dims[d];
        printf("%s:", t->name);
        for (size_t k = 0; k < elements(t) && k < 16; k++) {
            long long q = value(outputs[i], t->dtype, k);
            size_t row = t->num_scales > 1 ? k / along % (size_t)t->num_scales : 0;
            if (t->num_scales) printf(" %g", (double)t->scales[row] * (double)(q - t->zero_point));
            else printf(" %lld", q);
        }
        printf("\n");
    }
    return 0;
}
