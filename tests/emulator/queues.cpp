// Stand-in libcuda: streams, events and graphs.
#include <algorithm>

#include "driver.h"

namespace emu::device {
namespace {

Handles<Event> events;
Handles<std::shared_ptr<Graph>> graphs, executables;

}  // namespace
}  // namespace emu::device

using namespace emu::device;

// Streams.

API Result cuStreamCreateWithPriority(void** handle, unsigned flags, int priority) {
  Call call;
  if (call.error) return call.error;
  if (flags > 1) return INVALID_VALUE;
  *handle = new_stream(call.context, !(flags & 1), std::clamp(priority, -5, 0), flags).get();
  return SUCCESS;
}
API Result cuStreamCreate(void** handle, unsigned flags) { return cuStreamCreateWithPriority(handle, flags, 0); }
API Result cuStreamDestroy_v2(void* handle) {
  Call call;
  if (call.error && !call.only_sticky()) return call.error;
  auto stream = find_stream(call.context, handle);
  if (!stream || stream == call.context->null) return INVALID_HANDLE;
  destroy_stream(call.held, stream);
  return call.error;
}
API Result cuStreamSynchronize(void* handle) {
  Call call;
  auto stream = call.stream(handle);
  if (call.error) return call.error;
  if (!stream->capture)
    if (Result result = unsafe_call()) return result;
  return synchronize(call.held, stream);
}
API Result cuStreamQuery(void* handle) {
  Call call;
  auto stream = call.stream(handle);
  if (call.error) return call.error;
  if (Result result = unsafe_call()) return result;
  if (stream->completed >= stream->pushed) return SUCCESS;
  nudge(call.held, stream.get());
  return stream->context->sticky ? stream->context->sticky : NOT_READY;
}
API Result cuStreamWaitEvent(void* handle, void* event, unsigned) {
  Call call;
  auto stream = call.stream(handle);
  Event* found = events.find(event);
  if (!call.error && !found) call.error = INVALID_HANDLE;
  return call.error ? call.error : wait(call.held, stream, found);
}
API Result cuStreamGetPriority(void* handle, int* priority) {
  Call call;
  if (auto stream = call.stream(handle)) *priority = stream->priority;
  return call.error;
}
API Result cuStreamGetFlags(void* handle, unsigned* flags) {
  Call call;
  if (auto stream = call.stream(handle)) *flags = stream->flags;
  return call.error;
}
API Result cuStreamGetCtx(void* handle, void** context) {
  Call call;
  if (auto stream = call.stream(handle)) *context = stream->context;
  return call.error;
}
API Result cuLaunchHostFunc(void* handle, void (*function)(void*), void* data) {
  Call call;
  auto stream = call.stream(handle);
  if (call.error) return call.error;
  return push(call.held, stream,
              {"host function",
               [=] {
                 function(data);
                 return SUCCESS;
               },
               {},
               {}});
}

// Events.

API Result cuEventCreate(void** handle, unsigned flags) {
  Call call;
  if (call.error) return call.error;
  *handle = events.add(new Event);
  ((Event*)*handle)->flags = flags;
  return SUCCESS;
}
API Result cuEventDestroy_v2(void* handle) {
  Held held(lock());
  return events.remove(handle) ? SUCCESS : INVALID_HANDLE;
}
API Result cuEventRecord(void* handle, void* stream_handle) {
  Call call;
  auto stream = call.stream(stream_handle);
  Event* event = events.find(handle);
  if (!call.error && !event) call.error = INVALID_HANDLE;
  return call.error ? call.error : record(call.held, event, stream);
}
API Result cuEventRecordWithFlags(void* event, void* stream, unsigned) { return cuEventRecord(event, stream); }
API Result cuEventQuery(void* handle) {
  Call call;
  Event* event = events.find(handle);
  if (!call.error && !event) call.error = INVALID_HANDLE;
  if (call.error) return call.error;
  if (event->capture) return CAPTURED_EVENT;
  if (Result result = unsafe_call()) return result;
  if (!event->recorded || event->mark.passed()) return SUCCESS;
  Context* context = event->mark.stream->context;
  nudge(call.held, event->mark.stream.get());
  return context->sticky ? context->sticky : NOT_READY;
}
API Result cuEventSynchronize(void* handle) {
  Call call;
  Event* event = events.find(handle);
  if (!call.error && !event) call.error = INVALID_HANDLE;
  if (call.error) return call.error;
  if (event->capture) return CAPTURED_EVENT;
  if (Result result = unsafe_call()) return result;
  if (!event->recorded) return SUCCESS;
  count(SYNCHRONISATIONS);
  Mark mark = event->mark;
  run_until(call.held, [&] { return mark.passed(); }, mark.stream.get());
  return mark.stream->context->sticky;
}
API Result cuEventElapsedTime_v2(float* milliseconds, void* from, void* to) {
  Call call;
  Event *first = events.find(from), *last = events.find(to);
  if (call.error) return call.error;
  constexpr unsigned DISABLE_TIMING = 2;
  for (Event* event : {first, last})
    if (!event || (event->flags & DISABLE_TIMING) || !event->recorded || event->capture) return INVALID_HANDLE;
  if (!first->mark.passed() || !last->mark.passed()) return NOT_READY;
  *milliseconds = *last->milliseconds - *first->milliseconds;
  return SUCCESS;
}
API Result cuEventElapsedTime(float* milliseconds, void* from, void* to) {
  return cuEventElapsedTime_v2(milliseconds, from, to);
}

// Graphs.

API Result cuStreamBeginCapture_v2(void* handle, int mode) {
  Call call;
  auto stream = call.stream(handle);
  return call.error ? call.error : begin_capture(stream, (Capture::Mode)mode);
}
API Result cuStreamEndCapture(void* handle, void** graph) {
  Call call;
  auto stream = call.stream(handle);
  *graph = nullptr;
  if (call.error && !call.only_sticky()) return call.error;
  std::shared_ptr<Graph> recorded;
  if (Result result = end_capture(stream, recorded)) return result;
  *graph = graphs.add(new std::shared_ptr<Graph>(recorded));
  return call.error;
}
API Result cuStreamIsCapturing(void* handle, int* status) {
  Call call;
  if (auto stream = call.stream(handle)) *status = !stream->capture ? 0 : stream->capture->invalid ? 2 : 1;
  return call.error;
}
API Result cuStreamGetCaptureInfo_v2(void* handle, int* status, uint64_t* id, void** graph, const void** dependencies,
                                     size_t* n) {
  Call call;
  auto stream = call.stream(handle);
  if (call.error) return call.error;
  *status = !stream->capture ? 0 : stream->capture->invalid ? 2 : 1;
  if (id && stream->capture) *id = stream->capture->id;
  if (graph) *graph = nullptr;
  if (dependencies) *dependencies = nullptr;
  if (n) *n = 0;
  return SUCCESS;
}
API Result cuStreamGetCaptureInfo_v3(void* handle, int* status, uint64_t* id, void** graph, const void** dependencies,
                                     const void** edges, size_t* n) {
  if (edges) *edges = nullptr;
  return cuStreamGetCaptureInfo_v2(handle, status, id, graph, dependencies, n);
}
API Result cuThreadExchangeStreamCaptureMode(int* mode) {
  Capture::Mode before = capture_mode;
  capture_mode = (Capture::Mode)*mode;
  *mode = before;
  return SUCCESS;
}
API Result cuGraphInstantiateWithFlags(void** handle, void* graph, unsigned long long) {
  Call call;
  auto* found = graphs.find(graph);
  if (!call.error && !found) call.error = INVALID_VALUE;
  if (call.error) return call.error;
  *handle = executables.add(new std::shared_ptr<Graph>(*found));
  return SUCCESS;
}
API Result cuGraphInstantiate_v2(void** handle, void* graph, void** node, char* log, size_t bytes) {
  if (node) *node = nullptr;
  if (log && bytes) *log = 0;
  return cuGraphInstantiateWithFlags(handle, graph, 0);
}
API Result cuGraphInstantiateWithParams(void** handle, void* graph, void*) {
  return cuGraphInstantiateWithFlags(handle, graph, 0);
}
API Result cuGraphGetNodes(void* graph, void** nodes, size_t* n) {
  Call call;
  auto* found = graphs.find(graph);
  if (!found) return INVALID_VALUE;
  size_t all = (*found)->nodes.size();
  for (size_t i = 0; nodes && i < *n; i++) nodes[i] = i < all ? &(*found)->nodes[i] : nullptr;
  *n = nodes ? std::min(*n, all) : all;
  return SUCCESS;
}
API Result cuGraphLaunch(void* handle, void* stream_handle) {
  Call call;
  auto stream = call.stream(stream_handle);
  auto* found = executables.find(handle);
  if (!call.error && !found) call.error = INVALID_VALUE;
  return call.error ? call.error : launch_graph(call.held, *found, stream);
}
API Result cuGraphUpload(void* handle, void* stream_handle) {
  Call call;
  call.stream(stream_handle);
  if (!call.error && !executables.find(handle)) call.error = INVALID_VALUE;
  return call.error;
}
API Result cuGraphDestroy(void* graph) {
  Held held(lock());
  return graphs.remove(graph) ? SUCCESS : INVALID_VALUE;
}
API Result cuGraphExecDestroy(void* handle) {
  Held held(lock());
  return executables.remove(handle) ? SUCCESS : INVALID_VALUE;
}
