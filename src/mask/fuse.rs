//! Fusing bands, so that the same cells written as other slices become the same bands.

use std::collections::HashMap;

use crate::mask::Band;

/// What two bands that are parts of one have in common.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Seam {
    /// One starts at the query where the other ends, and they share their first key, their last, or both diagonals.
    Query(i64, Common),
    /// One starts at the key where the other ends, and they share their first query, their last, or both diagonals.
    Key(i64, Common),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Common {
    Start(i64),
    End(i64),
    Diagonals(i64, i64),
}

/// The seams at one end of a band: where it starts, or where it ends.
fn seams(band: &Band, at_end: bool) -> [Seam; 6] {
    let Band { q, k, d_lo, d_hi } = band;
    let (query, key) = if at_end { (q.end, k.end) } else { (q.start, k.start) };
    let diagonals = Common::Diagonals(*d_lo, *d_hi);
    [
        Seam::Query(query, Common::Start(k.start)),
        Seam::Query(query, Common::End(k.end)),
        Seam::Query(query, diagonals),
        Seam::Key(key, Common::Start(q.start)),
        Seam::Key(key, Common::End(q.end)),
        Seam::Key(key, diagonals),
    ]
}

/// The band with just the cells of two that share none, if there is one.
fn united(one: &Band, other: &Band) -> Option<Band> {
    let hull = Band {
        q: one.q.start.min(other.q.start)..one.q.end.max(other.q.end),
        k: one.k.start.min(other.k.start)..one.k.end.max(other.k.end),
        d_lo: one.d_lo.min(other.d_lo),
        d_hi: one.d_hi.max(other.d_hi),
    };
    let area = one.area().checked_add(other.area())?;
    // The hull has all their cells; where it has no others, it is their union.
    hull.shrunk().filter(|hull| hull.area() == area && area < u64::MAX)
}

/// Puts bands together that are one band cut along a query or a key, until none is left. They must be shrunk and share
/// no cell. Takes time in the number of bands, as long as few of them have a seam in common.
pub(super) fn fuse(bands: Vec<Band>) -> Vec<Band> {
    let mut bands: Vec<Option<Band>> = bands.into_iter().map(Some).collect();
    loop {
        let mut starts: HashMap<Seam, Vec<usize>> = HashMap::new();
        for (index, band) in bands.iter().enumerate() {
            for seam in band.iter().flat_map(|band| seams(band, false)) {
                starts.entry(seam).or_default().push(index);
            }
        }
        let mut fused = false;
        for index in 0..bands.len() {
            while let Some(band) = &bands[index] {
                let others = seams(band, true).into_iter().filter_map(|seam| starts.get(&seam)).flatten();
                let union = |&other: &usize| Some((other, united(band, bands[other].as_ref()?)?));
                let Some((other, union)) = others.filter(|&&other| other != index).find_map(union) else { break };
                bands[other] = None;
                bands[index] = Some(union);
                fused = true;
            }
        }
        bands.retain(Option::is_some);
        if !fused {
            return bands.into_iter().flatten().collect();
        }
    }
}
