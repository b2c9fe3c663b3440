// A small fuzzer for machines without clang: it takes libFuzzer's options that this project uses, mutates inputs in a
// sequence that the seed fixes, and keeps those that reach something new, which the targets' code reports when it is
// compiled with -fsanitize-coverage=trace-pc (g++ and clang both know it).
//
//   PROGRAM [-seed=N] [-runs=N] [-max_total_time=S] [-max_len=N] [-timeout=S] [-artifact_prefix=P] PATH...
//
// A PATH is a folder of start inputs; what was found new is written to the first folder. If every PATH is a file, each
// is run once and nothing is mutated. An input that stops the program is written to P + "crash-" + its hash.
#include <sanitizer/common_interface_defs.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

namespace fs = std::filesystem;
using Bytes = std::vector<uint8_t>;
using Clock = std::chrono::steady_clock;

// ---- What a run has reached: how often each pair of consecutive places was passed, in powers of two ----

constexpr size_t kEdges = 1 << 14;
uint8_t passes[kEdges];
uint8_t reached[kEdges];
uintptr_t last_place;
extern "C" char __executable_start;

}  // namespace

extern "C" __attribute__((no_sanitize("address", "undefined"))) void __sanitizer_cov_trace_pc() {
  const uintptr_t offset =
      reinterpret_cast<uintptr_t>(__builtin_return_address(0)) -
      reinterpret_cast<uintptr_t>(&__executable_start);  // the same for every load address
  const uintptr_t place = (offset * 0x9e3779b97f4a7c15u) >> 48;
  uint8_t& count = passes[(place ^ last_place) % kEdges];
  count += count < 255;
  last_place = place >> 1;
}

namespace {

// Adds what the last run passed to what was reached before; whether any of it is new.
bool reached_more() {
  bool more = false;
  for (size_t i = 0; i < kEdges; ++i) {
    if (passes[i] == 0) continue;
    const uint8_t bucket = static_cast<uint8_t>(1u << (31 - __builtin_clz(passes[i])));
    more |= (reached[i] & bucket) == 0;
    reached[i] |= bucket;
  }
  return more;
}

// ---- Options and files ----

struct Options {
  uint64_t seed = 1, runs = UINT64_MAX, seconds = UINT64_MAX, max_len = 4096, timeout = 60;
  std::string artifacts;
  std::vector<fs::path> paths;
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const size_t equals = argument.find('=');
    if (argument[0] != '-') {
      options.paths.emplace_back(argument);
    } else if (argument.starts_with("-artifact_prefix=")) {
      options.artifacts = argument.substr(equals + 1);
    } else if (equals != std::string::npos) {
      const uint64_t value = std::strtoull(argument.c_str() + equals + 1, nullptr, 10);
      const std::string name = argument.substr(1, equals - 1);
      if (name == "seed") options.seed = value;
      if (name == "runs") options.runs = value;
      if (name == "max_total_time") options.seconds = value;
      if (name == "max_len") options.max_len = value;
      if (name == "timeout") options.timeout = value;
    }
  }
  return options;
}

Bytes read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return Bytes(std::istreambuf_iterator<char>(file), {});
}

void write(const std::string& path, const Bytes& bytes) {
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

std::string hash(const Bytes& bytes) {
  uint64_t value = 0xcbf29ce484222325u;  // FNV-1a
  for (const uint8_t byte : bytes) value = (value ^ byte) * 0x100000001b3u;
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(value));
  return text;
}

// ---- One run ----

Bytes current;
std::string artifacts;
uint64_t executions;

void keep_current() {
  const std::string path = artifacts + "crash-" + hash(current);
  write(path, current);
  std::fprintf(stderr, "stopped after %llu runs; the input is %s\n",
               static_cast<unsigned long long>(executions), path.c_str());
}

void on_alarm(int) {
  std::fputs("ERROR: an input takes too long\n", stderr);
  std::abort();
}

bool run(const Bytes& input, uint64_t timeout) {
  current = input;
  std::memset(passes, 0, sizeof passes);
  last_place = 0;
  alarm(static_cast<unsigned>(timeout));
  LLVMFuzzerTestOneInput(current.data(), current.size());
  alarm(0);
  ++executions;
  return reached_more();
}

// ---- Mutations ----

uint64_t random_state;

uint64_t below(uint64_t bound) {
  uint64_t z = random_state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return (z ^ (z >> 31)) % bound;
}

void put_number(Bytes& bytes, size_t at) {
  static constexpr uint64_t kValues[] = {0,      1,      0x7f,       0x80,       0xff, 0x7fff,
                                         0x8000, 0xffff, 0x7fffffff, 0x80000000, ~0ull};
  const size_t width = std::min<size_t>(size_t{1} << below(4), bytes.size() - at);
  uint64_t value = kValues[below(std::size(kValues))];
  if (below(2) == 0) {
    value = 0;
    std::memcpy(&value, &bytes[at], width);
    value += below(33) - 16;
  }
  std::memcpy(&bytes[at], &value, width);
}

void mutate_once(Bytes& bytes, const Bytes& other) {
  const size_t size = bytes.size();
  if (size == 0) {
    bytes.push_back(static_cast<uint8_t>(below(256)));
    return;
  }
  const size_t at = below(size), length = 1 + below(std::min<size_t>(size - at, 1 + below(64)));
  switch (below(8)) {
    case 0: bytes[at] ^= static_cast<uint8_t>(1u << below(8)); break;
    case 1: bytes[at] = static_cast<uint8_t>(below(256)); break;
    case 2: put_number(bytes, at); break;
    case 3: bytes.erase(bytes.begin() + at, bytes.begin() + at + length); break;
    case 4: bytes.insert(bytes.begin() + at, length, static_cast<uint8_t>(below(256))); break;
    case 5: {
      const Bytes piece(bytes.begin() + at, bytes.begin() + at + length);
      bytes.insert(bytes.begin() + below(size + 1), piece.begin(), piece.end());
      break;
    }
    case 6: bytes.resize(at); break;
    default: {
      const size_t from = other.empty() ? 0 : below(other.size());
      bytes.resize(at);
      bytes.insert(bytes.end(), other.begin() + from, other.end());
    }
  }
}

Bytes mutated(const std::vector<Bytes>& corpus, uint64_t max_len) {
  Bytes bytes = corpus[below(corpus.size())];
  for (uint64_t left = 1 + below(8); left > 0; --left) mutate_once(bytes, corpus[below(corpus.size())]);
  if (bytes.size() > max_len) bytes.resize(max_len);
  return bytes;
}

void fuzz(const Options& options, const std::vector<fs::path>& starts) {
  const auto begin = Clock::now();
  const auto is_over = [&] {
    return executions >= options.runs ||
           Clock::now() - begin >= std::chrono::seconds(std::min<uint64_t>(options.seconds, 1u << 30));
  };
  std::vector<Bytes> corpus{{}};
  for (const fs::path& start : starts) {
    if (is_over()) break;
    corpus.push_back(read(start));
    run(corpus.back(), options.timeout);
  }
  while (!is_over()) {
    const Bytes bytes = mutated(corpus, options.max_len);
    if (!run(bytes, options.timeout)) continue;
    corpus.push_back(bytes);
    if (!options.paths.empty()) write(options.paths.front() / hash(bytes), bytes);
  }
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(Clock::now() - begin).count();
  const auto edges =
      std::count_if(std::begin(reached), std::end(reached), [](uint8_t bits) { return bits != 0; });
  const auto runs = static_cast<unsigned long long>(executions);
  std::fprintf(stderr, "#%llu DONE cov: %lld corp: %zu\n", runs, static_cast<long long>(edges),
               corpus.size());
  std::fprintf(stderr, "Done %llu runs in %lld second(s)\n", runs, static_cast<long long>(seconds));
}

}  // namespace

int main(int argc, char** argv) {
  const Options options = parse(argc, argv);
  artifacts = options.artifacts;
  random_state = options.seed;
  __sanitizer_set_death_callback(keep_current);
  std::signal(SIGALRM, on_alarm);
  std::vector<fs::path> inputs;
  bool mutates = options.paths.empty();
  for (const fs::path& path : options.paths) {
    if (!fs::is_directory(path)) {
      inputs.push_back(path);
      continue;
    }
    mutates = true;
    for (const auto& entry : fs::directory_iterator(path)) inputs.push_back(entry.path());
  }
  std::ranges::sort(inputs);  // a folder has no order of its own
  if (mutates) {
    fuzz(options, inputs);
  } else {
    for (const fs::path& input : inputs) run(read(input), options.timeout);
  }
  std::fprintf(stderr, "stat::number_of_executed_units: %llu\n", static_cast<unsigned long long>(executions));
  return 0;
}
