#include "cuda/generic_gather.cu"
