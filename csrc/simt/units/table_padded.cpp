#include "cuda/table_padded.cpp"
