#include "testing/rows_wgrad_bugs.cu"
