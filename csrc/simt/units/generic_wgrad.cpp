#include "cuda/generic_wgrad.cu"
