// What benchmarks ask about the machine.
#pragma once

namespace gcsa_ext {

// The shortest time in seconds that a cache line takes from one core to another and back.
struct CoreRoundTrip {
    double seconds;  // how long to measure
};

}  // namespace gcsa_ext
