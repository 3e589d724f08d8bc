#include "testing/bug_probes.cu"
