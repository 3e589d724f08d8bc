#include "testing/rows_bugs.cu"
