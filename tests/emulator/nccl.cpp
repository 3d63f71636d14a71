// Stand-in libnccl: communicators whose ranks are threads of this process, messages between them on streams of the
// stand-in driver.
//
// A group of messages stands at the head of its stream until the partners of all its receives have come as far, and
// then until all that it sends was taken. Communicators that do not block do as little as they may: what a call begins
// is done, or queued on a stream, only by the second look at ncclCommGetAsyncError, and messages to or from a rank for the
// first time only when that rank has called for the same: both make the connection. An abort lets the own streams go on
// and tells nobody, as between GPUs of a machine.
//
// Sums over ranks stand at the heads of streams in the same way until all ranks have come as far. They start from the
// last rank, so that nobody takes them for sums in rank order.
//
// Absent: other collective operations, sums in groups, messages that a graph records, ranks in other processes.
#include <immintrin.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <set>

#include "streams.h"

#define API extern "C" __attribute__((visibility("default")))

using emu::device::Held;
using emu::device::Op;
extern "C" int cuCtxGetDevice(int* device);

namespace {

enum Result {
  SUCCESS = 0,
  UNHANDLED_CUDA_ERROR = 1,
  SYSTEM_ERROR = 2,
  INTERNAL_ERROR = 3,
  INVALID_ARGUMENT = 4,
  INVALID_USAGE = 5,
  REMOTE_ERROR = 6,
  IN_PROGRESS = 7,
};

Result refuse(const char* why, Result result) {
  fprintf(stderr, "nccl: %s\n", why);
  return result;
}

struct UniqueId {
  char bytes[128];
};
struct Config {  // the beginning that all versions share
  size_t size;
  unsigned magic, version;
  int blocking;
};

struct Message {
  const char* from;
  size_t bytes;
  bool taken = false;
};

// The ranks that belong together.
struct Clique {
  int ranks = 0;
  std::map<int, int> devices;  // of the ranks that have come
  // Messages on their way, by sender and receiver, in the order in which they were sent.
  std::map<std::pair<int, int>, std::deque<std::shared_ptr<Message>>> sent;
  struct Split {
    std::map<int, std::pair<int, int>> wishes;  // color and key of each rank
    std::map<int, std::shared_ptr<Clique>> of_color;
  };
  std::deque<Split> splits;
  // Sums over ranks, by their number: what each rank gave.
  struct Sum {
    size_t n = 0;
    int type = 0;
    bool differ = false;
    std::map<int, std::vector<char>> given;
  };
  std::map<uint64_t, Sum> sums;
  // Ranks that have called for messages with which others.
  std::set<std::pair<int, int>> met;

  bool complete() const { return (int)devices.size() == ranks; }
  bool shares_a_device() const {
    std::set<int> different;
    for (auto [rank, device] : devices) different.insert(device);
    return (int)different.size() < ranks;
  }
};

struct Communicator {
  std::shared_ptr<Clique> clique;
  int rank = 0, device = 0;
  bool blocks = true, aborted = false, finalised = false;
  Result error = SUCCESS;
  // Until then the communicator does not exist: all ranks have come, or have said where they go.
  std::function<bool()> arrives;
  // Messages that wait for a look at the state of a communicator that does not block.
  std::vector<std::function<Result()>> deferred;
  unsigned looks = 0;
  std::set<int> meets;  // whom they are with
  size_t splits = 0;
  // Groups start in the order in which they were called, on whatever stream.
  uint64_t called = 0, started = 0, sums = 0;
};
typedef std::shared_ptr<Communicator> Shared;

std::condition_variable arrived;
std::map<void*, Shared>& communicators() {
  static auto* all = new std::map<void*, Shared>;
  return *all;
}
std::map<std::string, std::shared_ptr<Clique>>& cliques() {
  static auto* all = new std::map<std::string, std::shared_ptr<Clique>>;
  return *all;
}

Shared find(void* handle) {
  auto at = communicators().find(handle);
  return at == communicators().end() ? nullptr : at->second;
}
void* hand_out(const Shared& one) {
  communicators()[one.get()] = one;
  return one.get();
}

// Parts of the calling thread's open group.
struct Part {
  Shared of;
  void* stream;
  bool sends;
  char* buffer;
  size_t bytes;
  int peer;
};
thread_local int depth = 0;
thread_local std::vector<Part> parts;
thread_local std::vector<Shared> coming;  // communicators whose creation waits for the group's end
thread_local Result first_error = SUCCESS;

// Whether the communicator exists by now.
bool exists(Communicator& c) {
  if (!c.arrives) return true;
  if (!c.arrives()) return false;
  c.arrives = nullptr;
  if (c.clique->shares_a_device()) c.error = refuse("two ranks on one device", INVALID_USAGE);
  return true;
}

// Waits for a communicator that blocks.
Result settle(Held& held, const Shared& c) {
  if (!c->blocks) return IN_PROGRESS;
  while (!exists(*c) && !c->aborted) arrived.wait(held);
  return c->error;
}

Result usable(const Shared& c) {
  if (!c) return INVALID_ARGUMENT;
  if (c->error) return c->error;
  if (c->aborted || c->finalised) return INVALID_USAGE;
  if (c->arrives || !c->deferred.empty()) return refuse("the communicator is still in progress", INVALID_USAGE);
  return SUCCESS;
}

// The messages of one communicator and stream that go together.
struct Group {
  Shared of;
  std::vector<Part> parts;
  uint64_t number;
  bool started = false;
  std::vector<std::shared_ptr<Message>> sent;

  bool ready() {
    if (of->aborted) return true;
    if (!started) {
      if (of->started != number) return false;
      of->started++;
      started = true;
      for (const Part& part : parts) {
        if (!part.sends) continue;
        sent.push_back(std::make_shared<Message>(Message{part.buffer, part.bytes}));
        of->clique->sent[{of->rank, part.peer}].push_back(sent.back());
      }
      emu_changed();
    }
    std::map<int, size_t> wanted;
    for (const Part& part : parts)
      if (!part.sends && of->clique->sent[{part.peer, of->rank}].size() < ++wanted[part.peer]) return false;
    return true;
  }

  emu::device::Result receive() {
    for (const Part& part : parts) {
      if (part.sends) continue;
      std::shared_ptr<Message> message;
      {
        Held held(emu_lock());
        if (of->aborted) return emu::device::SUCCESS;
        auto& queue = of->clique->sent[{part.peer, of->rank}];
        message = queue.front();
        queue.pop_front();
      }
      if (message->bytes != part.bytes) {
        fprintf(stderr, "nccl: rank %d receives %zu bytes from rank %d, which sends %zu\n", of->rank, part.bytes,
                part.peer, message->bytes);
        return emu::device::LAUNCH_FAILED;
      }
      memcpy(part.buffer, message->from, part.bytes);
      Held held(emu_lock());
      message->taken = true;
      emu_changed();
    }
    return emu::device::SUCCESS;
  }

  bool all_taken() const {
    return of->aborted || std::all_of(sent.begin(), sent.end(), [](auto& message) { return message->taken; });
  }
};

Result queue(const std::shared_ptr<Group>& group) {
  void* stream = group->parts[0].stream;
  if (emu_enqueue(stream, {"messages", [group] { return group->receive(); }, [group] { return group->ready(); }, {}}))
    return UNHANDLED_CUDA_ERROR;
  Op end{"messages taken", {}, [group] { return group->all_taken(); }, {}};
  return emu_enqueue(stream, std::move(end)) ? UNHANDLED_CUDA_ERROR : SUCCESS;
}

// Queues the messages of the group that ends, by communicator and stream.
Result end_group() {
  std::vector<std::shared_ptr<Group>> groups;
  Result result = first_error;
  std::vector<Shared> created = std::move(coming);
  coming.clear();
  {
    Held held(emu_lock());
    for (const Shared& c : created)
      if (Result settled = settle(held, c); !result) result = settled;
    for (Part& part : parts) {
      if (result) break;
      auto at = std::find_if(groups.begin(), groups.end(),
                             [&](auto& g) { return g->of == part.of && g->parts[0].stream == part.stream; });
      if (at == groups.end()) {
        groups.push_back(std::make_shared<Group>(Group{part.of, {}, part.of->called++, false, {}}));
        at = groups.end() - 1;
      }
      (*at)->parts.push_back(part);
    }
    parts.clear();
    first_error = SUCCESS;
    for (auto& group : groups) {
      if (group->of->blocks) continue;
      group->of->deferred.push_back([group] { return queue(group); });
      for (const Part& part : group->parts) {
        group->of->clique->met.insert({group->of->rank, part.peer});
        group->of->meets.insert(part.peer);
      }
      group->of->looks = 0;
      result = IN_PROGRESS;
    }
  }
  for (auto& group : groups)
    if (group->of->blocks && (!result || result == IN_PROGRESS))
      if (Result queued = queue(group)) result = queued;
  return result;
}

size_t size_of(int type) {
  constexpr size_t BYTES[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
  return type >= 0 && type < 12 ? BYTES[type] : 0;
}

// Element types that are summed.
constexpr int F16 = 6, F32 = 7, F64 = 8, BF16 = 9;

double load(const char* at, int type) {
  uint16_t half;
  float single;
  double whole;
  switch (type) {
    case F64: return memcpy(&whole, at, 8), whole;
    case F32: return memcpy(&single, at, 4), single;
    case F16: return memcpy(&half, at, 2), _cvtsh_ss(half);
  }
  memcpy(&half, at, 2);
  uint32_t bits = (uint32_t)half << 16;
  memcpy(&single, &bits, 4);
  return single;
}
void store(char* at, int type, double value) {
  float single = value;
  uint16_t half;
  uint32_t bits;
  switch (type) {
    case F64: memcpy(at, &value, 8); return;
    case F32: memcpy(at, &single, 4); return;
    case F16: half = _cvtss_sh(single, _MM_FROUND_TO_NEAREST_INT); break;
    default:
      memcpy(&bits, &single, 4);
      half = single != single ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  }
  memcpy(at, &half, 2);
}

// One rank's part in a sum over ranks.
struct Summand {
  Shared of;
  const char* from;
  char* to;
  size_t n;
  int type;
  uint64_t group, number;
  bool started = false;

  bool ready() {
    if (of->aborted) return true;
    auto& sum = of->clique->sums[number];
    if (!started) {
      if (of->started != group) return false;
      of->started++;
      started = true;
      if (sum.given.empty()) sum.n = n, sum.type = type;
      sum.differ |= sum.n != n || sum.type != type;
      sum.given[of->rank].assign(from, from + n * size_of(type));
      emu_changed();
    }
    return (int)sum.given.size() == of->clique->ranks;
  }

  emu::device::Result run() {
    Clique::Sum sum;
    {
      Held held(emu_lock());
      if (of->aborted) return emu::device::SUCCESS;
      sum = of->clique->sums[number];
    }
    if (sum.differ) {
      fprintf(stderr, "nccl: rank %d sums %zu elements of type %d, and others do not\n", of->rank, n, type);
      return emu::device::LAUNCH_FAILED;
    }
    size_t bytes = size_of(type);
    for (size_t i = 0; i < n; i++) {
      double total = 0;
      for (auto given = sum.given.rbegin(); given != sum.given.rend(); ++given) {
        store(to + i * bytes, type, total + load(&given->second[i * bytes], type));
        total = load(to + i * bytes, type);
      }
    }
    return emu::device::SUCCESS;
  }
};

Result queue_sum(const std::shared_ptr<Summand>& one, void* stream) {
  Op op{"sum over ranks", [one] { return one->run(); }, [one] { return one->ready(); }, {}};
  return emu_enqueue(stream, std::move(op)) ? UNHANDLED_CUDA_ERROR : SUCCESS;
}

Result leave_group(Result result) {
  if (result && result != IN_PROGRESS) first_error = first_error ? first_error : result;
  return --depth ? result : end_group();
}

Result message(bool sends, void* buffer, size_t n, int type, int peer, void* handle, void* stream) {
  depth++;
  Result result;
  {
    Held held(emu_lock());
    Shared c = find(handle);
    result = usable(c);
    if (!result && (peer < 0 || peer >= c->clique->ranks || !size_of(type))) result = INVALID_ARGUMENT;
    if (!result) parts.push_back({c, stream, sends, (char*)buffer, n * size_of(type), peer});
  }
  if (!result && n && !emu_on_device(buffer, n * size_of(type))) {
    parts.pop_back();
    result = refuse("a buffer is not in an allocation of a device", INVALID_ARGUMENT);
  }
  return leave_group(result);
}

}  // namespace

API Result ncclGetVersion(int* version) {
  *version = 22800;
  return SUCCESS;
}
API const char* ncclGetErrorString(Result result) {
  switch (result) {
    case SUCCESS: return "no error";
    case UNHANDLED_CUDA_ERROR: return "unhandled cuda error";
    case SYSTEM_ERROR: return "unhandled system error";
    case INTERNAL_ERROR: return "internal error";
    case INVALID_ARGUMENT: return "invalid argument";
    case INVALID_USAGE: return "invalid usage";
    case REMOTE_ERROR: return "remote process exited or there was a network error";
    case IN_PROGRESS: return "NCCL operation in progress";
  }
  return "unknown result code";
}
API const char* ncclGetLastError(void*) { return "see stderr"; }

API Result ncclGetUniqueId(UniqueId* id) {
  static uint64_t last = 0;
  Held held(emu_lock());
  memset(id, 0, sizeof *id);
  snprintf(id->bytes, sizeof id->bytes, "emulated %llu", (unsigned long long)++last);
  cliques()[id->bytes] = std::make_shared<Clique>();
  return SUCCESS;
}

API Result ncclCommInitRankConfig(void** handle, int ranks, UniqueId id, int rank, const Config* config) {
  if (!handle || ranks < 1 || rank < 0 || rank >= ranks) return INVALID_ARGUMENT;
  auto c = std::make_shared<Communicator>();
  if (cuCtxGetDevice(&c->device)) return UNHANDLED_CUDA_ERROR;
  Held held(emu_lock());
  auto at = cliques().find(std::string(id.bytes, strnlen(id.bytes, sizeof id.bytes)));
  if (at == cliques().end()) return refuse("an unknown id: ranks are threads of one process here", SYSTEM_ERROR);
  c->clique = at->second;
  if (c->clique->ranks && c->clique->ranks != ranks) return refuse("ranks differ on their number", INVALID_ARGUMENT);
  if (c->clique->devices.count(rank)) return refuse("a rank comes twice", INVALID_USAGE);
  c->clique->ranks = ranks;
  c->clique->devices[rank] = c->device;
  c->rank = rank;
  // Hosts that leave the default have its most negative number.
  c->blocks = !config || config->blocking != 0;
  c->arrives = [clique = c->clique] { return clique->complete(); };
  *handle = hand_out(c);
  arrived.notify_all();
  if (depth) return coming.push_back(c), SUCCESS;
  return settle(held, c);
}
API Result ncclCommInitRank(void** handle, int ranks, UniqueId id, int rank) {
  return ncclCommInitRankConfig(handle, ranks, id, rank, nullptr);
}

API Result ncclCommSplit(void* handle, int color, int key, void** split, const Config* config) {
  constexpr int NO_COLOR = -1;
  Held held(emu_lock());
  Shared c = find(handle);
  if (Result result = usable(c)) return result;
  if (color < NO_COLOR) return INVALID_ARGUMENT;
  auto parent = c->clique;
  size_t n = c->splits++;
  if (parent->splits.size() <= n) parent->splits.resize(n + 1);
  parent->splits[n].wishes[c->rank] = {color, key};
  *split = nullptr;
  if (color == NO_COLOR) return arrived.notify_all(), SUCCESS;

  auto made = std::make_shared<Communicator>();
  made->device = c->device;
  made->blocks = !config ? c->blocks : config->blocking != 0;
  made->rank = -1;
  auto& clique = parent->splits[n].of_color[color];
  if (!clique) clique = std::make_shared<Clique>();
  made->clique = clique;
  auto* one = made.get();
  made->arrives = [=, rank = c->rank] {
    auto& all = parent->splits[n].wishes;
    if ((int)all.size() < parent->ranks) return false;
    // By key, then by rank.
    std::vector<std::pair<int, int>> members;
    for (auto& [other, wish] : all)
      if (wish.first == color) members.push_back({wish.second, other});
    std::sort(members.begin(), members.end());
    one->clique->ranks = members.size();
    for (size_t i = 0; i < members.size(); i++) {
      one->clique->devices[i] = parent->devices[members[i].second];
      if (members[i].second == rank) one->rank = i;
    }
    return true;
  };
  *split = hand_out(made);
  arrived.notify_all();
  if (depth) return coming.push_back(made), SUCCESS;
  return settle(held, made);
}

API Result ncclCommGetAsyncError(void* handle, Result* state) {
  std::vector<std::function<Result()>> now;
  Shared c;
  {
    Held held(emu_lock());
    c = find(handle);
    if (!c || !state) return INVALID_ARGUMENT;
    if (c->error || c->aborted) return *state = c->error, SUCCESS;
    bool waits = c->arrives || !c->deferred.empty();
    if (!exists(*c) || (waits && !c->blocks && c->looks++ == 0)) return *state = IN_PROGRESS, SUCCESS;
    for (int peer : c->meets)
      if (!c->clique->met.count({peer, c->rank})) return *state = IN_PROGRESS, SUCCESS;
    c->meets.clear();
    now = std::move(c->deferred);
    c->deferred.clear();
    *state = c->error;
  }
  for (auto& queue : now)
    if (Result result = queue()) *state = c->error = result;
  return SUCCESS;
}

API Result ncclCommAbort(void* handle) {
  Held held(emu_lock());
  Shared c = find(handle);
  if (!c) return INVALID_ARGUMENT;
  c->aborted = true;
  communicators().erase(handle);
  emu_changed();
  arrived.notify_all();
  return SUCCESS;
}
API Result ncclCommFinalize(void* handle) {
  Held held(emu_lock());
  Shared c = find(handle);
  if (Result result = usable(c)) return result;
  c->finalised = true;
  return c->blocks ? SUCCESS : IN_PROGRESS;
}
API Result ncclCommDestroy(void* handle) {
  Held held(emu_lock());
  return communicators().erase(handle) ? SUCCESS : INVALID_ARGUMENT;
}

API Result ncclCommCount(void* handle, int* n) {
  Held held(emu_lock());
  Shared c = find(handle);
  if (!c || c->arrives) return INVALID_ARGUMENT;
  *n = c->clique->ranks;
  return SUCCESS;
}
API Result ncclCommUserRank(void* handle, int* rank) {
  Held held(emu_lock());
  Shared c = find(handle);
  if (!c || c->arrives) return INVALID_ARGUMENT;
  *rank = c->rank;
  return SUCCESS;
}
API Result ncclCommCuDevice(void* handle, int* device) {
  Held held(emu_lock());
  Shared c = find(handle);
  if (!c) return INVALID_ARGUMENT;
  *device = c->device;
  return SUCCESS;
}

API Result ncclGroupStart() {
  depth++;
  return SUCCESS;
}
API Result ncclGroupEnd() { return depth ? leave_group(SUCCESS) : INVALID_USAGE; }
API Result ncclSend(const void* buffer, size_t n, int type, int peer, void* comm, void* stream) {
  return message(true, (void*)buffer, n, type, peer, comm, stream);
}
API Result ncclRecv(void* buffer, size_t n, int type, int peer, void* comm, void* stream) {
  return message(false, buffer, n, type, peer, comm, stream);
}
API Result ncclAllReduce(const void* from, void* to, size_t n, int type, int op, void* handle, void* stream) {
  constexpr int SUM = 0;
  if (depth) return first_error = refuse("a sum in a group", INVALID_USAGE);
  if (op != SUM || type < F16 || type > BF16) return refuse("not a sum of a type that is summed here", INVALID_ARGUMENT);
  for (const void* buffer : {from, (const void*)to})
    if (n && !emu_on_device(buffer, n * size_of(type)))
      return refuse("a buffer is not in an allocation of a device", INVALID_ARGUMENT);
  std::shared_ptr<Summand> one;
  {
    Held held(emu_lock());
    Shared c = find(handle);
    if (Result result = usable(c)) return result;
    one = std::make_shared<Summand>(Summand{c, (const char*)from, (char*)to, n, type, c->called++, c->sums++});
    if (!c->blocks) {
      c->deferred.push_back([one, stream] { return queue_sum(one, stream); });
      c->looks = 0;
      return IN_PROGRESS;
    }
  }
  return queue_sum(one, stream);
}
