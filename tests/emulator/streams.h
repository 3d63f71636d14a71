// Streams of the stand-in driver: queues of which nothing runs before somebody waits. libcuda, libcublasLt and libnccl
// share them.
//
// A thread that waits runs what is at the heads of queues, in random order as far as events allow (EMU_STREAMS=need: as
// little as possible besides what it waits for). Threads that wait at the same time run different streams at the same
// time.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace emu::device {

// Error codes of the driver, by their documented numbers.
enum Result : int {
  SUCCESS = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  NOT_INITIALIZED = 3,
  INVALID_DEVICE = 101,
  INVALID_IMAGE = 200,
  INVALID_CONTEXT = 201,
  NO_BINARY_FOR_GPU = 209,
  INVALID_HANDLE = 400,
  NOT_FOUND = 500,
  NOT_READY = 600,
  ILLEGAL_ADDRESS = 700,
  LAUNCH_OUT_OF_RESOURCES = 701,
  PEER_ACCESS_ALREADY_ENABLED = 704,
  LAUNCH_FAILED = 719,
  COOPERATIVE_LAUNCH_TOO_LARGE = 720,
  NOT_SUPPORTED = 801,
  CAPTURE_UNSUPPORTED = 900,
  CAPTURE_INVALIDATED = 901,
  CAPTURE_MERGE = 902,
  CAPTURE_UNMATCHED = 903,
  CAPTURE_UNJOINED = 904,
  CAPTURE_ISOLATION = 905,
  CAPTURE_IMPLICIT = 906,
  CAPTURED_EVENT = 907,
  CAPTURE_WRONG_THREAD = 908,
};

struct Stream;
struct Context;

// A point of a stream's queue: everything up to `ticket`.
struct Mark {
  std::shared_ptr<Stream> stream;
  uint64_t ticket = 0;
  bool passed() const;
};

struct Op {
  std::string what;
  std::function<Result()> run;
  // Asked with the lock held once the operation is at the head; until it says yes, the stream stands still.
  std::function<bool()> ready;
  std::vector<Mark> after;
};

// What was recorded instead of queued. Nodes come after the nodes that they wait for.
struct Graph {
  struct Node {
    std::string what;
    std::function<Result()> run;
    std::vector<size_t> after;
  };
  std::vector<Node> nodes;
};

struct Capture {
  enum Mode { GLOBAL = 0, THREAD_LOCAL = 1, RELAXED = 2 };
  Graph graph;
  Mode mode = GLOBAL;
  bool invalid = false;
  Stream* origin = nullptr;
  std::thread::id thread;
  std::vector<Stream*> streams;
  uint64_t id = 0;
};

struct Stream {
  Context* context = nullptr;
  bool blocking = true;  // waits for the null stream, and the null stream for it
  int priority = 0;
  unsigned flags = 0;
  bool destroyed = false;
  std::deque<Op> queue;
  bool busy = false;
  uint64_t pushed = 0, completed = 0;
  // Set while the stream records; `last`: nodes that the next one comes after.
  std::shared_ptr<Capture> capture;
  std::vector<size_t> last;
};

struct Context {
  int device = 0;
  int retained = 0;
  // The first error of a kernel or a damaged allocation; every later call gives it.
  Result sticky = SUCCESS;
  size_t used = 0;
  std::shared_ptr<Stream> null;
};

struct Event {
  unsigned flags = 0;
  bool recorded = false;
  Mark mark;
  std::shared_ptr<double> milliseconds;  // when the record ran; below 0 until then
  // Recorded into a graph.
  std::shared_ptr<Capture> capture;
  std::vector<size_t> nodes;
};

enum Counter {
  LAUNCHES,  // kernels handed to a stream, also one that records
  KERNELS,   // kernels that ran, by graphs too
  GRAPH_LAUNCHES,
  PRODUCTS,  // cublasLtMatmul
  COPIES_TO_DEVICE,
  COPIES_TO_HOST,
  COPIES_ON_DEVICE,  // and between devices
  MEMSETS,
  SYNCHRONISATIONS,  // calls that made the host wait, copies to pageable memory among them
  ALLOCATIONS,
  FREES,
  COUNTERS,
};
extern const char* const COUNTER_NAMES[COUNTERS];

// One lock guards everything here; it is not held while an operation runs.
std::mutex& lock();
typedef std::unique_lock<std::mutex> Held;

void count(Counter which, uint64_t n = 1);
uint64_t counted(Counter which);

std::shared_ptr<Stream> new_stream(Context* context, bool blocking, int priority, unsigned flags);
// The stream of a handle; null, if there is no such one.
std::shared_ptr<Stream> find_stream(Context* context, void* handle);
void destroy_stream(Held& held, const std::shared_ptr<Stream>& stream);

// Queues an operation, or records it while the stream records.
Result push(Held& held, const std::shared_ptr<Stream>& stream, Op op);
// Runs operations until `done`; `target`: what it is waited for, if that is one stream.
void run_until(Held& held, const std::function<bool()>& done, Stream* target = nullptr);
Result synchronize(Held& held, const std::shared_ptr<Stream>& stream);
Result synchronize(Held& held, Context* context);
// Runs at most one operation, so that hosts that ask again and again come to an end.
void nudge(Held& held, Stream* target);
// Something that `ready` of an operation depends on has changed.
void changed();

Result record(Held& held, Event* event, const std::shared_ptr<Stream>& stream);
Result wait(Held& held, const std::shared_ptr<Stream>& stream, Event* event);

// An error if the calling thread may not do what synchronises, since a stream records; the recording is then invalid.
Result unsafe_call();
Result begin_capture(const std::shared_ptr<Stream>& stream, Capture::Mode mode);
Result end_capture(const std::shared_ptr<Stream>& stream, std::shared_ptr<Graph>& graph);
Result launch_graph(Held& held, const std::shared_ptr<Graph>& graph, const std::shared_ptr<Stream>& stream);
extern thread_local Capture::Mode capture_mode;

uint64_t random_number();
bool setting(const char* name);  // whether the environment variable is set, to anything but 0

}  // namespace emu::device

// What libcuda gives to the other stand-ins.

// Queues an operation on a stream of the calling thread's context.
emu::device::Result emu_enqueue(void* stream, emu::device::Op op);
bool emu_is_capturing(void* stream);
// Whether all of these bytes lie in one allocation of a device.
bool emu_on_device(const void* address, size_t bytes);
std::mutex& emu_lock();
void emu_changed();  // with the lock held: something that `ready` of an operation depends on
void emu_count_product();
