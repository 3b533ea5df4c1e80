// Included before all else where one instruction set is enough: the plainest.
#include <vector>

#undef __x86_64__
#include "simd/instruction_set.h"
#define __x86_64__ 1
