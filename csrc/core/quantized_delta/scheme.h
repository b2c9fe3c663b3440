// What the codes of a quantised delta stand for; the numbers are those of the Python side.
#pragma once

namespace graftwork {

// With a block's scale s and half = 2^(bits - 1): sign: +s or -s; sym: (code - half) s; midrise: (code - half + 1/2) s;
// asym: (code - zero) s; nf4: one of sixteen levels times s.
enum class Scheme : int { sign = 0, sym = 1, midrise = 2, asym = 3, nf4 = 4 };

}  // namespace graftwork
