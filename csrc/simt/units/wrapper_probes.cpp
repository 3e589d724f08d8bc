#include "testing/wrapper_probes.cu"
