// Schedules of attention tiles, built cell by cell from a mask: what the Rust host prepares, for kernel tests.
#pragma once
#include "../../kernels/attention.cuh"

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

namespace schedule {

// Whether query i attends key j.
using Attends = std::function<bool(int i, int j)>;

// How rows are cut into tiles: the first tile may be shorter, so that tiles start anywhere.
struct Cut {
  int tile, first;
  Cut(int tile) : tile(tile), first(tile) {}
  Cut(int tile, int first) : tile(tile), first(first) {}
};

struct Schedule {
  std::vector<Item> items;
  std::vector<Visit> visits;
  std::vector<u32> table;
  // Valid while the schedule lives and does not change.
  Tiles tiles() const { return {items.data(), visits.data(), table.data(), (i64)items.size()}; }
};

inline bool empty(Interval interval) { return interval.from >= interval.to; }

// The maximal intervals of keys in from <= j < to that query i attends.
inline std::vector<Interval> intervals(const Attends& attends, int i, int from, int to) {
  std::vector<Interval> found;
  for (int j = from; j < to; j++) {
    if (!attends(i, j)) continue;
    if (!found.empty() && found.back().to == j) found.back().to++;
    else found.push_back({j, j + 1});
  }
  return found;
}

// Adds a visit with one interval for each query, relative to `first_key`, of a tile of `keys` keys.
inline void add_visit(Schedule& schedule, Item& item, int row, int rows, const std::vector<Interval>& of_queries,
                      int first_key, int keys) {
  Visit visit{row, rows, -1};
  auto whole = [&](Interval x) { return x.from == first_key && x.to == first_key + keys; };
  if (!std::all_of(of_queries.begin(), of_queries.end(), whole)) {
    visit.table = (int)schedule.table.size();
    for (Interval x : of_queries) {
      u32 from = empty(x) ? 0 : x.from - first_key, to = empty(x) ? 0 : x.to - first_key;
      schedule.table.push_back(from | to << 16);
    }
  }
  schedule.visits.push_back(visit);
  item.count++;
}

inline void longest_first(Schedule& schedule) {
  std::stable_sort(schedule.items.begin(), schedule.items.end(), [](auto& a, auto& b) { return a.count > b.count; });
}

// Items of queries. A tile of keys starts at the first key that is still to be attended; a query that has two intervals
// in it has the second in the next visit.
inline Schedule of_queries(int queries, int keys, const Attends& attends, Cut rows, int keys_tile) {
  Schedule schedule;
  for (int row = 0, count; row < queries; row += count) {
    count = std::min(row == 0 ? rows.first : rows.tile, queries - row);
    Item item{row, count, (int)schedule.visits.size(), 0};
    std::vector<std::vector<Interval>> left;
    for (int i = row; i < row + count; i++) left.push_back(intervals(attends, i, 0, keys));
    for (;;) {
      int first = keys, last = 0;
      for (auto& x : left) if (!x.empty()) first = std::min(first, x[0].from);
      if (first == keys) break;
      std::vector<Interval> taken;
      for (auto& x : left) {
        if (x.empty() || x[0].from >= first + keys_tile) {
          taken.push_back({0, 0});
          continue;
        }
        taken.push_back({x[0].from, std::min(x[0].to, first + keys_tile)});
        last = std::max(last, taken.back().to);
        x[0].from = taken.back().to;
        if (empty(x[0])) x.erase(x.begin());
      }
      add_visit(schedule, item, first, last - first, taken, first, last - first);
    }
    schedule.items.push_back(item);
  }
  longest_first(schedule);
  return schedule;
}

// Items of keys. Tiles of keys start at the first key that is attended at all, tiles of queries at the first query that
// still attends one of them; keys that nobody attends are in no item, except that tiles are not cut for them.
inline Schedule of_keys(int queries, int keys, const Attends& attends, int rows_tile, Cut keys_cut) {
  Schedule schedule;
  auto attended = [&](int j) {
    for (int i = 0; i < queries; i++) if (attends(i, j)) return true;
    return false;
  };
  int key = 0, tile = keys_cut.first;
  for (;;) {
    while (key < keys && !attended(key)) key++;
    if (key == keys) break;
    int count = std::min(tile, keys - key);
    while (!attended(key + count - 1)) count--;
    Item item{key, count, (int)schedule.visits.size(), 0};
    std::vector<std::vector<Interval>> left;
    for (int i = 0; i < queries; i++) left.push_back(intervals(attends, i, key, key + count));
    for (;;) {
      int first = 0, last = 0;
      while (first < queries && left[first].empty()) first++;
      if (first == queries) break;
      std::vector<Interval> taken;
      for (int i = first; i < std::min(queries, first + rows_tile); i++) {
        taken.push_back(left[i].empty() ? Interval{0, 0} : left[i][0]);
        if (left[i].empty()) continue;
        left[i].erase(left[i].begin());
        last = i + 1;
      }
      taken.resize(last - first);
      add_visit(schedule, item, first, last - first, taken, key, count);
    }
    schedule.items.push_back(item);
    key += count;
    tile = keys_cut.tile;
  }
  longest_first(schedule);
  return schedule;
}

// Whether a schedule has each cell of the mask once and no other, and, of queries, each query row once.
inline bool covers(const Schedule& schedule, bool of_queries, int queries, int keys, const Attends& attends) {
  std::vector<int> cells((size_t)queries * keys), rows(queries);
  for (const Item& item : schedule.items) {
    if (of_queries) for (int i = 0; i < item.rows; i++) rows[item.row + i]++;
    for (int n = item.first; n < item.first + item.count; n++) {
      const Visit& visit = schedule.visits[n];
      int q_row = of_queries ? item.row : visit.row, q_rows = of_queries ? item.rows : visit.rows;
      int k_row = of_queries ? visit.row : item.row, k_rows = of_queries ? visit.rows : item.rows;
      for (int i = 0; i < q_rows; i++) {
        Interval x = ::attended(schedule.tiles(), visit, i, q_rows, k_rows);
        if (x.to > k_rows) return false;
        for (int j = x.from; j < x.to; j++) cells[(size_t)(q_row + i) * keys + k_row + j]++;
      }
    }
  }
  for (int i = 0; i < queries; i++) {
    if (of_queries && rows[i] != 1) return false;
    for (int j = 0; j < keys; j++) if (cells[(size_t)i * keys + j] != attends(i, j)) return false;
  }
  return true;
}

// Masks that attention tests share, for any numbers of queries and keys.
struct Mask {
  std::string name;
  Attends attends;
};
inline std::vector<Mask> masks() {
  // The document of a row, of lengths 13, 40, 1 and 29 in turn.
  auto document = [](int row) {
    int lengths[] = {13, 40, 1, 29}, at = 0, index = 0;
    while (at + lengths[index % 4] <= row) at += lengths[index++ % 4];
    return index;
  };
  return {
      {"full", [](int, int) { return true; }},
      {"causal", [](int i, int j) { return j <= i; }},
      {"window", [](int i, int j) { return j <= i && j > i - 21; }},
      {"documents", [=](int i, int j) { return document(i) == document(j) && j <= i; }},
      // Rows 5, 16, 27, ... and all from 40 to 119 attend nothing.
      {"empty rows", [](int i, int j) { return i % 11 != 5 && (i < 40 || i >= 120) && j <= i + 3; }},
      // Up to four intervals in a tile of 64 keys; the diagonal is a hole.
      {"holes", [](int i, int j) { return j % 17 < 9 && (i + j) % 29 > 4 && j != i; }},
      {"nothing", [](int, int) { return false; }},
  };
}

}  // namespace schedule
