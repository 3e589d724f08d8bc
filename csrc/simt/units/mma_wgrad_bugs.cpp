#include "testing/mma_wgrad_bugs.cu"
