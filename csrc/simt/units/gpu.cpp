#include "cuda/gpu.cu"
