/* Matrix products: cuBLAS and cuBLASLt. The kind of the factors stands behind the name. */
#include "counting.h"

/* Two headers for nvcc are left out; their types are named, and not used here. */
#define __CUDA_FP16_H__
#define __CUDA_BF16_H__
typedef struct {
    unsigned short bits;
} __half, __nv_bfloat16;

#include <cublasLt.h>
#include <cublas_v2.h>
#include <stdlib.h>

static void product(const void *stream, const void *a, const void *b, const char *f32, const char *f16,
                    const char *bf16, const char *other, cudaDataType kind) {
    if (!is_captured(stream)) {
        order_read(a);
        order_read(b);
    }
    count_on(stream, kind == CUDA_R_32F ? f32 : kind == CUDA_R_16F ? f16 : kind == CUDA_R_16BF ? bf16 : other);
}
#define PRODUCT(stream, name, kind) product(stream, a, b, name " f32", name " f16", name " bf16", name, kind)

cublasStatus_t cublasCreate_v2(cublasHandle_t *handle) {
    *handle = calloc(1, sizeof(void *));
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDestroy_v2(cublasHandle_t handle) {
    free(handle);
    return CUBLAS_STATUS_SUCCESS;
}

/* A handle is the place of its stream. */
cublasStatus_t cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream) {
    *(void **)handle = stream;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetMathMode(cublasHandle_t handle, cublasMath_t mode) {
    if (mode == CUBLAS_TF32_TENSOR_OP_MATH) count("products of f32 in TF32");
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGetMathMode(cublasHandle_t handle, cublasMath_t *mode) {
    *mode = CUBLAS_DEFAULT_MATH;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t handle, cublasPointerMode_t *mode) {
    *mode = CUBLAS_POINTER_MODE_HOST;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k,
                            const void *alpha, const void *a, cudaDataType a_kind, int lda, const void *b,
                            cudaDataType b_kind, int ldb, const void *beta, void *c, cudaDataType c_kind, int ldc,
                            cublasComputeType_t compute, cublasGemmAlgo_t algorithm) {
    PRODUCT(*(void **)handle, "cublasGemmEx", a_kind);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t handle, cublasOperation_t ta, cublasOperation_t tb, int m,
                                          int n, int k, const void *alpha, const void *a, cudaDataType a_kind, int lda,
                                          long long a_stride, const void *b, cudaDataType b_kind, int ldb,
                                          long long b_stride, const void *beta, void *c, cudaDataType c_kind, int ldc,
                                          long long c_stride, int batch, cublasComputeType_t compute,
                                          cublasGemmAlgo_t algorithm) {
    PRODUCT(*(void **)handle, "cublasGemmStridedBatchedEx", a_kind);
    return CUBLAS_STATUS_SUCCESS;
}

size_t cublasLtGetVersion(void) { return CUBLAS_VERSION; }

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *description, cublasComputeType_t compute,
                                        cudaDataType scale) {
    if (compute == CUBLAS_COMPUTE_32F_FAST_TF32) count("products of f32 in TF32");
    *description = calloc(1, sizeof **description);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t description) {
    free(description);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference) {
    *preference = calloc(1, sizeof **preference);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
    free(preference);
    return CUBLAS_STATUS_SUCCESS;
}

/* The layout remembers its kind for the product. */
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType kind, uint64_t rows,
                                          uint64_t columns, int64_t leading) {
    *layout = calloc(1, sizeof **layout);
    (*layout)->data[0] = kind;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
    free(layout);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t description,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t results[], int *found) {
    results[0] = (cublasLtMatmulHeuristicResult_t){.state = CUBLAS_STATUS_SUCCESS};
    *found = 1;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t description, const void *alpha,
                              const void *a, cublasLtMatrixLayout_t a_layout, const void *b,
                              cublasLtMatrixLayout_t b_layout, const void *beta, const void *c,
                              cublasLtMatrixLayout_t c_layout, void *d, cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t *algorithm, void *workspace, size_t size,
                              cudaStream_t stream) {
    PRODUCT(stream, "cublasLtMatmul", (cudaDataType)a_layout->data[0]);
    return CUBLAS_STATUS_SUCCESS;
}
