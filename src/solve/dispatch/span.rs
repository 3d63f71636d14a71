//! Spans: the parts of a batch between which nothing is attended.

use std::ops::Range;

use crate::solve::dispatch::Problem;

/// Cuts the batch at every start of a document that no band reaches across, and where no two tokens on either side
/// attend each other. Together the spans are `0..tokens`, in order, none of them empty.
pub(super) fn spans(problem: &Problem) -> Vec<Range<usize>> {
    let tokens = problem.tokens();
    let clip = |token: i64| usize::try_from(token).unwrap_or(0).min(tokens);
    let mut hulls: Vec<Range<usize>> = problem
        .masks
        .iter()
        .flat_map(|(bands, _)| bands.as_slice())
        .map(|band| clip(band.q.start.min(band.k.start))..clip(band.q.end.max(band.k.end)))
        .filter(|hull| !hull.is_empty())
        .collect();
    hulls.sort_unstable_by_key(|hull| hull.start);
    let mut joined: Vec<Range<usize>> = Vec::new();
    for hull in hulls {
        match joined.last_mut() {
            // Hulls that only touch do not attend each other.
            Some(last) if hull.start < last.end => last.end = last.end.max(hull.end),
            _ => joined.push(hull),
        }
    }
    let mut cuts: Vec<usize> = joined.iter().flat_map(|hull| [hull.start, hull.end]).chain([0, tokens]).collect();
    let inside = |cut: usize| {
        let index = joined.partition_point(|hull| hull.end <= cut);
        joined.get(index).is_some_and(|hull| hull.start < cut)
    };
    cuts.extend(problem.documents.iter().map(|document| document.start.min(tokens)).filter(|&cut| !inside(cut)));
    cuts.sort_unstable();
    cuts.dedup();
    cuts.windows(2).map(|pair| pair[0]..pair[1]).collect()
}
