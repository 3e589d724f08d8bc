#include "testing/mma_bugs.cu"
