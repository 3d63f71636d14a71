// Queues, the order in which they run, and graphs recorded from them.
#include "streams.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "memory.h"

namespace emu::device {
namespace {

std::condition_variable something_ran;
// In the order of creation, so that a seed gives the same run again.
std::vector<std::shared_ptr<Stream>> streams;
unsigned running = 0;
uint64_t counters[COUNTERS];
std::vector<std::shared_ptr<Capture>> captures;
uint64_t last_capture = 0;

bool as_needed() {
  static const bool need = getenv("EMU_STREAMS") && !strcmp(getenv("EMU_STREAMS"), "need");
  return need;
}

bool idle(const Stream& stream) { return stream.queue.empty() && !stream.busy; }

const Mark* unmet(const Op& op) {
  for (const Mark& mark : op.after)
    if (!mark.passed()) return &mark;
  return nullptr;
}

bool can_run(const Stream& stream) {
  if (stream.queue.empty() || stream.busy) return false;
  const Op& op = stream.queue.front();
  if (unmet(op)) return false;
  return !op.ready || stream.context->sticky || op.ready();
}

// The head that must run before anything else of `target` can, if it can run now.
Stream* needed(Stream* target) {
  while (!target->queue.empty() && !target->busy) {
    const Mark* mark = unmet(target->queue.front());
    if (!mark) return can_run(*target) ? target : nullptr;
    target = mark->stream.get();
  }
  return nullptr;
}

Stream* choose(Stream* target) {
  static const bool serial = setting("EMU_SERIAL");
  if (serial && running) return nullptr;
  if (target && as_needed())
    if (Stream* stream = needed(target)) return stream;
  std::vector<Stream*> able;
  for (const auto& stream : streams)
    if (can_run(*stream)) able.push_back(stream.get());
  return able.empty() ? nullptr : able[random_number() % able.size()];
}

void run_head(Held& held, Stream* stream) {
  static const bool check = setting("EMU_CHECK");
  Op op = std::move(stream->queue.front());
  stream->queue.pop_front();
  Context* context = stream->context;
  stream->busy = true;
  running++;
  Result result = SUCCESS;
  // After an error the device does nothing more.
  if (op.run && !context->sticky) {
    held.unlock();
    result = op.run();
    held.lock();
    if (check && check_all(op.what.c_str()) && !result) result = ILLEGAL_ADDRESS;
  }
  if (result && !context->sticky) context->sticky = result;
  running--;
  stream->busy = false;
  stream->completed++;
  if (stream->destroyed && stream->queue.empty())
    streams.erase(std::find_if(streams.begin(), streams.end(), [&](auto& each) { return each.get() == stream; }));
  something_ran.notify_all();
}

void invalidate(Capture& capture) { capture.invalid = true; }

void leave_capture(const std::shared_ptr<Capture>& capture) {
  for (Stream* stream : capture->streams) {
    stream->capture = nullptr;
    stream->last.clear();
  }
  captures.erase(std::find(captures.begin(), captures.end(), capture));
}

Result record_node(const std::shared_ptr<Stream>& stream, Op op) {
  Capture& capture = *stream->capture;
  if (capture.invalid) return CAPTURE_INVALIDATED;
  if (op.ready) {  // it could not wait while the graph runs
    invalidate(capture);
    return CAPTURE_UNSUPPORTED;
  }
  capture.graph.nodes.push_back({std::move(op.what), std::move(op.run), stream->last});
  stream->last = {capture.graph.nodes.size() - 1};
  return SUCCESS;
}

// Runs all nodes in random order, as far as edges allow.
Result run_graph(const Graph& graph) {
  std::vector<bool> done(graph.nodes.size());
  for (size_t count = 0; count < graph.nodes.size(); count++) {
    std::vector<size_t> able;
    for (size_t i = 0; i < graph.nodes.size(); i++) {
      const auto& after = graph.nodes[i].after;
      if (!done[i] && std::all_of(after.begin(), after.end(), [&](size_t j) { return done[j]; })) able.push_back(i);
    }
    size_t i;
    {
      Held held(lock());
      i = able[random_number() % able.size()];
    }
    done[i] = true;
    if (!graph.nodes[i].run) continue;
    if (Result result = graph.nodes[i].run()) return result;
  }
  return SUCCESS;
}

}  // namespace

const char* const COUNTER_NAMES[COUNTERS] = {
    "launches",       "kernels",          "graph_launches", "products",         "copies_to_device",
    "copies_to_host", "copies_on_device", "memsets",        "synchronisations", "allocations",
    "frees",
};

std::mutex& lock() {
  static std::mutex* one = new std::mutex;  // outlives what runs at exit
  return *one;
}

bool setting(const char* name) {
  const char* value = getenv(name);
  return value && *value && strcmp(value, "0");
}

uint64_t random_number() {
  static uint64_t state = 0;
  if (!state) {
    const char* seed = getenv("EMU_SEED");
    state = (seed ? strtoull(seed, nullptr, 10) : 1) * 0x9E3779B97F4A7C15ull | 1;
  }
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state >> 11;
}

void count(Counter which, uint64_t n) { __atomic_fetch_add(&counters[which], n, __ATOMIC_RELAXED); }
uint64_t counted(Counter which) { return __atomic_load_n(&counters[which], __ATOMIC_RELAXED); }

bool Mark::passed() const { return stream->completed >= ticket; }

std::shared_ptr<Stream> new_stream(Context* context, bool blocking, int priority, unsigned flags) {
  auto stream = std::make_shared<Stream>();
  stream->context = context;
  stream->blocking = blocking;
  stream->priority = priority;
  stream->flags = flags;
  streams.push_back(stream);
  return stream;
}

std::shared_ptr<Stream> find_stream(Context* context, void* handle) {
  if (!handle || handle == (void*)1) return context->null;
  for (const auto& stream : streams)
    if (stream.get() == handle && !stream->destroyed) return stream;
  return nullptr;
}

void destroy_stream(Held&, const std::shared_ptr<Stream>& stream) {
  if (stream->capture) invalidate(*stream->capture);
  stream->destroyed = true;
  // What is queued still runs.
  if (idle(*stream)) streams.erase(std::find(streams.begin(), streams.end(), stream));
}

Result push(Held& held, const std::shared_ptr<Stream>& stream, Op op) {
  static const bool eager = setting("EMU_EAGER");
  Context* context = stream->context;
  if (context->sticky) return context->sticky;
  if (stream->capture) return record_node(stream, std::move(op));
  if (stream == context->null) {
    for (const auto& other : streams) {
      if (other->context != context || !other->blocking || other == stream) continue;
      if (other->capture) {
        invalidate(*other->capture);
        return CAPTURE_IMPLICIT;
      }
      if (!idle(*other)) op.after.push_back({other, other->pushed});
    }
  } else if (stream->blocking && !idle(*context->null)) {
    op.after.push_back({context->null, context->null->pushed});
  }
  stream->pushed++;
  stream->queue.push_back(std::move(op));
  something_ran.notify_all();
  if (eager) {
    // An operation that waits for another thread stays.
    while (Stream* next = needed(stream.get())) run_head(held, next);
    return context->sticky;
  }
  return SUCCESS;
}

void run_until(Held& held, const std::function<bool()>& done, Stream* target) {
  while (!done()) {
    if (Stream* stream = choose(target))
      run_head(held, stream);
    else
      // Another thread runs what is needed, or must first queue it.
      something_ran.wait_for(held, std::chrono::milliseconds(100));
  }
}

Result synchronize(Held& held, const std::shared_ptr<Stream>& stream) {
  if (stream->capture) {
    invalidate(*stream->capture);
    return CAPTURE_UNSUPPORTED;
  }
  count(SYNCHRONISATIONS);
  uint64_t ticket = stream->pushed;
  run_until(held, [&] { return stream->completed >= ticket; }, stream.get());
  return stream->context->sticky;
}

Result synchronize(Held& held, Context* context) {
  count(SYNCHRONISATIONS);
  std::vector<Mark> marks;
  for (const auto& stream : streams)
    if (stream->context == context) marks.push_back({stream, stream->pushed});
  for (const Mark& mark : marks) run_until(held, [&] { return mark.passed(); });
  return context->sticky;
}

void nudge(Held& held, Stream* target) {
  if (Stream* stream = choose(target)) {
    run_head(held, stream);
  } else {
    held.unlock();
    std::this_thread::yield();
    held.lock();
  }
}

void changed() { something_ran.notify_all(); }

Result record(Held& held, Event* event, const std::shared_ptr<Stream>& stream) {
  event->recorded = true;
  event->capture = stream->capture;
  if (stream->capture) {
    event->nodes = stream->last;
    return stream->capture->invalid ? CAPTURE_INVALIDATED : SUCCESS;
  }
  // Recording again gives the event a new time; waits that were queued before keep the old point.
  auto time = std::make_shared<double>(-1);
  event->milliseconds = time;
  event->mark = {stream, stream->pushed + 1};
  return push(held, stream,
              {"event",
               [time] {
                 auto now = std::chrono::steady_clock::now().time_since_epoch();
                 *time = std::chrono::duration<double, std::milli>(now).count();
                 return SUCCESS;
               },
               {},
               {}});
}

Result wait(Held& held, const std::shared_ptr<Stream>& stream, Event* event) {
  if (!event->recorded) return SUCCESS;
  if (event->capture) {
    Capture& capture = *event->capture;
    if (capture.invalid) return CAPTURE_INVALIDATED;
    if (stream->capture && stream->capture != event->capture) {
      invalidate(capture);
      invalidate(*stream->capture);
      return CAPTURE_MERGE;
    }
    if (stream == stream->context->null) {
      invalidate(capture);
      return CAPTURE_IMPLICIT;
    }
    if (std::find(captures.begin(), captures.end(), event->capture) == captures.end()) return INVALID_VALUE;
    if (!stream->capture) {
      stream->capture = event->capture;
      stream->last.clear();
      capture.streams.push_back(stream.get());
    }
    for (size_t node : event->nodes)
      if (std::find(stream->last.begin(), stream->last.end(), node) == stream->last.end()) stream->last.push_back(node);
    return SUCCESS;
  }
  if (stream->capture) {
    invalidate(*stream->capture);
    return CAPTURE_ISOLATION;
  }
  return push(held, stream, {"wait for an event", {}, {}, {event->mark}});
}

thread_local Capture::Mode capture_mode = Capture::GLOBAL;

Result unsafe_call() {
  Result result = SUCCESS;
  for (const auto& capture : captures) {
    bool mine = capture->thread == std::this_thread::get_id();
    if (capture_mode == Capture::RELAXED || capture->mode == Capture::RELAXED) continue;
    if (mine || (capture->mode == Capture::GLOBAL && capture_mode == Capture::GLOBAL)) {
      invalidate(*capture);
      result = CAPTURE_UNSUPPORTED;
    }
  }
  return result;
}

Result begin_capture(const std::shared_ptr<Stream>& stream, Capture::Mode mode) {
  if (stream->capture || mode > Capture::RELAXED) return INVALID_VALUE;
  if (stream == stream->context->null) return CAPTURE_UNSUPPORTED;
  auto capture = std::make_shared<Capture>();
  capture->mode = mode;
  capture->origin = stream.get();
  capture->thread = std::this_thread::get_id();
  capture->streams = {stream.get()};
  capture->id = ++last_capture;
  stream->capture = capture;
  stream->last.clear();
  captures.push_back(capture);
  return SUCCESS;
}

Result end_capture(const std::shared_ptr<Stream>& stream, std::shared_ptr<Graph>& graph) {
  auto capture = stream->capture;
  if (!capture) return INVALID_VALUE;
  if (capture->origin != stream.get()) {
    invalidate(*capture);
    return CAPTURE_UNMATCHED;
  }
  if (capture->mode != Capture::RELAXED && capture->thread != std::this_thread::get_id()) return CAPTURE_WRONG_THREAD;
  // Everything must lead to the stream that began: what is not among the ancestors of its last nodes was never joined.
  const auto& nodes = capture->graph.nodes;
  std::vector<bool> reached(nodes.size());
  for (size_t last : stream->last) reached[last] = true;
  for (size_t i = nodes.size(); i-- > 0;)
    if (reached[i])
      for (size_t before : nodes[i].after) reached[before] = true;
  bool joined = std::find(reached.begin(), reached.end(), false) == reached.end();
  leave_capture(capture);
  if (capture->invalid) return CAPTURE_INVALIDATED;
  if (!joined) return CAPTURE_UNJOINED;
  graph = std::make_shared<Graph>(capture->graph);
  return SUCCESS;
}

Result launch_graph(Held& held, const std::shared_ptr<Graph>& graph, const std::shared_ptr<Stream>& stream) {
  if (stream->capture) {
    invalidate(*stream->capture);
    return CAPTURE_UNSUPPORTED;
  }
  count(GRAPH_LAUNCHES);
  return push(held, stream, {"graph", [graph] { return run_graph(*graph); }, {}, {}});
}

}  // namespace emu::device
