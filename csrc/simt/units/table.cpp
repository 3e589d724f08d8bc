#include "cuda/table.cpp"
