//! Token orders, placements, masks and tiles: golden maps of Megatron-LM and Transformer Engine, and properties for
//! any lengths.

use std::sync::Arc;

use context_parallel::error::{Error, MaskError};
use context_parallel::layout::{Batch, Bshd, Dense, Document, Layout, Packed, Sbhd, Thd};
use context_parallel::mask::{Mask, Slice, SliceKind};
use context_parallel::order::{Contiguous, DynPlacement, Natural, Placement, Run, Striped, TokenOrder, Zigzag};
use context_parallel::plan::{tile, touched};
use proptest::prelude::*;

fn place<O: TokenOrder, L: Layout>(batch: L::Batch, ranks: usize, rank: usize) -> Arc<Placement<O, L>> {
    Placement::new(Arc::new(batch), ranks, rank).unwrap()
}

fn pack(cu_seqlens: &[i32]) -> Packed {
    Packed::from_cu_seqlens(cu_seqlens).unwrap()
}

/// `"0-3,12"` as numbers.
fn numbers(text: &str) -> Vec<usize> {
    let range = |part: &str| match part.split_once('-') {
        Some((first, last)) => first.parse().unwrap()..=last.parse().unwrap(),
        None => part.parse().unwrap()..=part.parse().unwrap(),
    };
    text.split(',').flat_map(range).collect()
}

/// Tokens of a rank in local order, from `token`.
fn tokens(placement: &DynPlacement, rank: usize) -> Vec<usize> {
    (0..placement.rows_of(rank)).map(|local| placement.token_of(rank, local)).collect()
}

fn from_runs(runs: &[Run]) -> Vec<usize> {
    runs.iter().flat_map(|run| (0..run.len).map(|i| run.token(i))).collect()
}

#[test]
fn zigzag_of_a_sequence_is_megatrons() {
    let golden: [(usize, &[&str]); 3] = [
        (2, &["0-5,18-23", "6-17"]),
        (3, &["0-3,20-23", "4-7,16-19", "8-15"]),
        (4, &["0-2,21-23", "3-5,18-20", "6-8,15-17", "9-14"]),
    ];
    for (ranks, held) in golden {
        for (rank, held) in held.iter().enumerate() {
            let placement = place::<Zigzag, Bshd>(Dense { batch: 1, seq: 24 }, ranks, rank);
            assert_eq!(tokens(&placement, rank), numbers(held));
            assert_eq!(from_runs(&placement.runs_of(rank)), numbers(held));
            assert_eq!(placement.positions(), numbers(held));
        }
    }
}

#[test]
fn zigzag_of_a_pack_is_transformer_engines() {
    #[rustfmt::skip]
    let golden: [(&[i32], usize, usize, &str, &str); 10] = [
        (&[0, 16], 2, 0, "0-3,12-15", "0-3,12-15"),
        (&[0, 16], 2, 1, "4-11", "4-11"),
        (&[0, 8, 24, 32], 2, 0, "0,1,6,7,8-11,20-23,24,25,30,31", "0,1,6,7,0-3,12-15,0,1,6,7"),
        (&[0, 8, 24, 32], 2, 1, "2-5,12-19,26-29", "2-5,4-11,2-5"),
        (&[0, 8, 8, 24, 24], 2, 0, "0,1,6,7,8-11,20-23", "0,1,6,7,0-3,12-15"),
        (&[0, 12, 36], 3, 0, "0,1,10,11,12-15,32-35", "0,1,10,11,0-3,20-23"),
        (&[0, 12, 36], 3, 1, "2,3,8,9,16-19,28-31", "2,3,8,9,4-7,16-19"),
        (&[0, 12, 36], 3, 2, "4-7,20-27", "4-7,8-15"),
        (&[0, 8, 24], 4, 0, "0,7,8,9,22,23", "0,7,0,1,14,15"),
        (&[0, 8, 24], 4, 3, "3,4,14,15,16,17", "3,4,6-9"),
    ];
    for (cu_seqlens, ranks, rank, held, positions) in golden {
        let placement = place::<Zigzag, Thd>(pack(cu_seqlens), ranks, rank);
        assert_eq!(tokens(&placement, rank), numbers(held));
        assert_eq!(from_runs(&placement.runs_of(rank)), numbers(held));
        assert_eq!(placement.positions(), numbers(positions));
    }
}

/// Rank-major shards back to natural order: which chunk of the gathered ones comes when.
#[test]
fn gathered_chunks_are_undone_as_in_megatron() {
    let golden: [(usize, &[usize], &[usize]); 3] = [
        (2, &[0, 2, 3, 1], &[0, 3, 1, 2]),
        (3, &[0, 2, 4, 5, 3, 1], &[0, 5, 1, 4, 2, 3]),
        (4, &[0, 2, 4, 6, 7, 5, 3, 1], &[0, 7, 1, 6, 2, 5, 3, 4]),
    ];
    for (ranks, undo, redo) in golden {
        let placement = place::<Zigzag, Bshd>(Dense { batch: 1, seq: 2 * ranks }, ranks, 0);
        let gathered: Vec<_> = (0..ranks).flat_map(|rank| tokens(&placement, rank)).collect();
        assert_eq!(gathered, redo);
        let found: Vec<_> = (0..2 * ranks).map(|t| placement.locate(t)).map(|(rank, row)| 2 * rank + row).collect();
        assert_eq!(found, undo);
    }
}

/// By memory row: the token whose value a tensor rolled by `shift` has there. Checked against the view of the rank that
/// holds it, on the way.
fn rolled_sources(placement: &DynPlacement, shift: i64) -> Vec<Option<usize>> {
    let mut sources = vec![None; placement.rows()];
    let by_row = |rank: usize| -> Vec<usize> {
        let locals = 0..placement.rows_of(rank);
        let mut tokens = vec![0; locals.len()];
        locals.for_each(|local| tokens[placement.row_of(rank, local)] = placement.token_of(rank, local));
        tokens
    };
    for (owner, targets, given) in placement.rolled(shift) {
        let tokens = by_row(owner);
        for (target, source) in targets.iter().zip(given.iter()) {
            assert_eq!(sources[target].replace(tokens[source]), None);
        }
        let its_view = placement.seen_from(owner).unwrap().rolled(shift.saturating_neg());
        let back = its_view.into_iter().find(|(reader, _, _)| *reader == placement.rank()).unwrap();
        if shift != i64::MIN {
            assert_eq!((&back.1, &back.2), (&given, &targets), "both sides in one order");
        }
    }
    sources
}

#[test]
fn packed_left_roll_is_megatrons() {
    for rank in 0..2 {
        let placement = place::<Zigzag, Thd>(pack(&[0, 8, 24]), 2, rank);
        let value = |source: Option<usize>| source.map_or(0, |token| token + 1);
        let rolled: Vec<_> = rolled_sources(&placement, 1).into_iter().map(value).collect();
        let expected: Vec<_> = tokens(&placement, rank)
            .into_iter()
            .map(|token| if token == 7 || token == 23 { 0 } else { token + 2 })
            .collect();
        assert_eq!(rolled, expected);
    }
}

#[test]
fn sequence_first_shards_interleave_sequences() {
    let placement = place::<Zigzag, Sbhd>(Dense { batch: 2, seq: 8 }, 2, 0);
    // Tokens 0, 1, 6, 7 of both sequences; row of (b, s) in the whole batch is s * 2 + b.
    assert_eq!(placement.full_rows_of(0).to_vec(), [0, 1, 2, 3, 12, 13, 14, 15]);
    assert_eq!(placement.positions(), [0, 0, 1, 1, 6, 6, 7, 7]);
}

#[test]
fn contiguous_and_striped_by_hand() {
    let lengths = pack(&[0, 5, 11]);
    let contiguous: Vec<_> = (0..3).map(|r| place::<Contiguous, Thd>(lengths.clone(), 3, r).runs_of(r)).collect();
    let run = |start, step, len| Run { start, step, len };
    assert_eq!(contiguous, [vec![run(0, 1, 4)], vec![run(4, 1, 1), run(5, 1, 3)], vec![run(8, 1, 3)]]);
    let striped: Vec<_> = (0..3).map(|r| place::<Striped, Thd>(lengths.clone(), 3, r).runs_of(r)).collect();
    assert_eq!(
        striped,
        [vec![run(0, 3, 2), run(6, 3, 2)], vec![run(1, 3, 2), run(7, 3, 2)], vec![run(2, 3, 1), run(5, 3, 2)]]
    );
    // 11 rows, stripes of 2 on 2 ranks: two rounds of 4, then 2 and 1.
    let wide = place::<Striped<2>, Thd>(pack(&[0, 11]), 2, 0);
    assert_eq!(tokens(&wide, 0), [0, 1, 4, 5, 8, 9]);
    assert_eq!(tokens(&wide, 1), [2, 3, 6, 7, 10]);
}

#[test]
fn spare_rows_of_a_pack_go_around() {
    // Seven documents of one row on 3 ranks: slots 0..6 in turn, then slot 0 again.
    let placement = place::<Zigzag, Thd>(Packed::from_lengths(&[1; 7]).unwrap(), 3, 0);
    let owners: Vec<_> = (0..7).map(|token| placement.locate(token).0).collect();
    assert_eq!(owners, [0, 1, 2, 0, 1, 2, 0]);
}

#[test]
fn rolled_sources_stay_in_valid_tokens() {
    let batch = Packed::new(&[3, 0, 2], &[4, 2, 2]).unwrap();
    let placement = place::<Natural, Thd>(batch, 1, 0);
    let sources = |shift| rolled_sources(&placement, shift);
    assert_eq!(sources(1), [Some(1), Some(2), None, None, None, None, Some(7), None]);
    assert_eq!(sources(-1), [None, Some(0), Some(1), None, None, None, None, Some(6)]);
    assert_eq!(sources(0), [Some(0), Some(1), Some(2), None, None, None, Some(6), Some(7)]);
    for far in [i64::MAX, i64::MIN] {
        assert_eq!(sources(far), [None; 8]);
    }
}

#[test]
fn different_placements_are_refused_with_both_names() {
    let one = place::<Zigzag, Thd>(pack(&[0, 8, 24, 48]), 4, 1);
    one.expect_same("query", &one.clone(), "key").unwrap();
    one.expect_same("query", &place(pack(&[0, 8, 24, 48]), 4, 1), "key").unwrap();
    let error = one.expect_same("query", &place(pack(&[0, 8, 24, 48]), 4, 2), "key").unwrap_err().to_string();
    assert!(error.contains("query is placed as zigzag of 3 documents (48 tokens), rank 1 of 4 and key"), "{error}");
    assert!(error.contains("rank 2 of 4"), "{error}");
    let error = one.expect_same("query", &place(pack(&[0, 8, 16, 48]), 4, 1), "key").unwrap_err().to_string();
    assert!(error.contains("document 1 with 16 valid tokens in 16 rows"), "{error}");
    assert!(error.contains("document 1 with 8 valid tokens in 8 rows"), "{error}");
    let mut hashes: Vec<_> = (0..4).map(|rank| place::<Zigzag, Thd>(pack(&[0, 48]), 4, rank).hash()).collect();
    hashes.dedup();
    assert_eq!(hashes.len(), 1, "every rank has the same hash");
    assert_ne!(hashes[0], place::<Zigzag, Thd>(pack(&[0, 48]), 5, 0).hash());
    assert_ne!(
        place::<Striped<2>, Thd>(pack(&[0, 48]), 4, 0).hash(),
        place::<Striped<4>, Thd>(pack(&[0, 48]), 4, 0).hash()
    );
}

#[test]
fn ranks_that_do_not_exist_are_refused() {
    let batch = Arc::new(pack(&[0, 8]));
    assert!(Placement::<Zigzag, Thd>::new(batch.clone(), 0, 0).is_err());
    assert!(Placement::<Zigzag, Thd>::new(batch, 2, 2).is_err());
}

/// Everything that must hold of any order on any batch.
fn check<O: TokenOrder, L: Layout>(batch: &L::Batch, ranks: usize) {
    check_placements(batch, ranks, &|rank| place::<O, L>(batch.clone(), ranks, rank).data().clone());
}

fn check_placements(batch: &dyn Batch, ranks: usize, place: &dyn Fn(usize) -> Arc<DynPlacement>) {
    let tokens_in_all = batch.tokens();
    let documents: Vec<Document> = (0..batch.documents()).map(|i| batch.document(i)).collect();
    let mut holders = vec![0; tokens_in_all];
    let mut rows = Vec::new();
    for rank in 0..ranks {
        let placement = place(rank);
        let layout = placement.layout();
        assert_eq!(placement.rows(), placement.rows_of(rank));
        rows.push(placement.rows());
        let held = tokens(&placement, rank);
        assert!(held.is_sorted_by(|a, b| a < b), "tokens ascend: {held:?}");
        for (local, &token) in held.iter().enumerate() {
            holders[token] += 1;
            assert_eq!(placement.locate(token), (rank, local), "token {token}");
        }

        let runs = placement.runs_of(rank);
        assert_eq!(from_runs(&runs), held);
        for run in &runs {
            let document = documents[batch.document_of(run.start)];
            assert!(run.len > 0 && run.step > 0, "{run:?}");
            assert!(run.end() <= document.stored_range().end, "{run:?} crosses {document:?}");
        }

        // Valid runs: the rank's tokens that are not padding, each at its local index.
        let mut valid = Vec::new();
        for (local, run) in placement.valid_runs_of(rank) {
            assert!(run.len > 0);
            valid.extend((0..run.len).map(|i| (local + i, run.token(i))));
        }
        let is_valid = |token: usize| documents.iter().any(|d| d.valid_range().contains(&token));
        let expected: Vec<_> = held.iter().copied().enumerate().filter(|&(_, token)| is_valid(token)).collect();
        assert_eq!(valid, expected);

        // By memory row.
        let (positions, full_rows) = (placement.positions(), placement.full_rows_of(rank).to_vec());
        let rolled: Vec<_> = [-2, 1, 3].map(|shift| (shift, rolled_sources(&placement, shift))).into();
        assert_eq!((positions.len(), full_rows.len()), (held.len(), held.len()));
        for (local, &token) in held.iter().enumerate() {
            let row = placement.row_of(rank, local);
            let document = documents.iter().find(|d| d.stored_range().contains(&token)).unwrap();
            assert_eq!(positions[row], token - document.start);
            assert_eq!(full_rows[row], layout.row(documents.len(), tokens_in_all, token));
            for (shift, sources) in &rolled {
                let source = token as i64 + shift;
                let within = |t: i64| (document.start as i64..(document.start + document.valid) as i64).contains(&t);
                let expected = (within(token as i64) && within(source)).then_some(source as usize);
                assert_eq!(sources[row], expected, "token {token} rolled by {shift}");
            }
        }
    }
    assert!(holders.iter().all(|&n| n == 1), "held once each: {holders:?}");
    if place(0).deal().name() != "natural" {
        let unit = if batch.uniform().is_some() { documents.len().max(1) } else { 1 };
        let (least, most) = (rows.iter().min().unwrap(), rows.iter().max().unwrap());
        assert!(most - least <= unit, "rows {rows:?}");
        assert!(batch.uniform().is_none() || rows.iter().all(|n| n % unit == 0), "alike in every sequence: {rows:?}");
    }
}

fn check_orders<L: Layout>(batch: &L::Batch, ranks: usize) {
    check::<Natural, L>(batch, ranks);
    check::<Contiguous, L>(batch, ranks);
    check::<Zigzag, L>(batch, ranks);
    check::<Striped, L>(batch, ranks);
    check::<Striped<2>, L>(batch, ranks);
    check::<Striped<5>, L>(batch, ranks);
    check::<Striped<{ usize::MAX }>, L>(batch, ranks);
}

#[test]
fn nothing_at_all_is_fine() {
    for ranks in [1, 3] {
        for (batch, seq) in [(0, 0), (0, 4), (3, 0)] {
            check_orders::<Bshd>(&Dense { batch, seq }, ranks);
            check_orders::<Sbhd>(&Dense { batch, seq }, ranks);
        }
        for lengths in [&[][..], &[0], &[0, 0, 0], &[0, 2, 0]] {
            check_orders::<Thd>(&Packed::from_lengths(lengths).unwrap(), ranks);
        }
    }
}

/// Lengths with many zeros and ones, as `(valid, stored)`.
fn lengths() -> impl Strategy<Value = Vec<(usize, usize)>> {
    let length = prop_oneof![Just(0), Just(1), 0usize..40];
    prop::collection::vec((length, prop_oneof![Just(0), 0usize..6]).prop_map(|(valid, pad)| (valid, valid + pad)), 0..7)
}

fn packed(lengths: &[(usize, usize)]) -> Packed {
    let (valid, stored): (Vec<_>, Vec<_>) = lengths.iter().copied().unzip();
    Packed::new(&valid, &stored).unwrap()
}

/// Whether token `q` may attend to token `k`, from the meaning of the mask.
fn attends(mask: &Mask, documents: &[Document], q: usize, k: usize) -> bool {
    let document = |token: usize| documents.iter().position(|d| d.valid_range().contains(&token));
    let (Some(of_q), Some(of_k)) = (document(q), document(k)) else { return false };
    if let Mask::Slices(slices) = mask {
        return slices.iter().any(|slice| in_slice(slice, q, k));
    }
    let within = |distance: usize, limit: Option<usize>| limit.is_none_or(|limit| distance <= limit);
    let seen = match mask {
        Mask::Full => true,
        Mask::Causal => k <= q,
        Mask::Window { left, .. } if k < q => within(q - k, *left),
        Mask::Window { right, .. } => within(k - q, *right),
        Mask::Prefix(prefix) => k <= q || k - documents[of_k].start < prefix[of_k],
        Mask::Slices(_) => unreachable!(),
    };
    of_q == of_k && seen
}

/// The bounds of MagiAttention's slice types.
fn in_slice(slice: &Slice, q: usize, k: usize) -> bool {
    let Slice { q: queries, k: keys, kind } = slice;
    if !queries.contains(&q) || !keys.contains(&k) {
        return false;
    }
    let upper = matches!(kind, SliceKind::Causal | SliceKind::BiCausal);
    let lower = matches!(kind, SliceKind::InvCausal | SliceKind::BiCausal);
    (!upper || k + (queries.end - 1 - q) < keys.end) && (!lower || k >= keys.start + (q - queries.start))
}

/// Every attended cell is in one piece of one rank, and in no other.
fn check_cover<O: TokenOrder, L: Layout>(batch: &L::Batch, mask: &Mask, ranks: usize) {
    check_cells(batch, mask, place::<O, L>(batch.clone(), ranks, 0).data());
}

fn check_cells(batch: &dyn Batch, mask: &Mask, placement: &DynPlacement) {
    let ranks = placement.ranks();
    let tokens = batch.tokens();
    let documents: Vec<Document> = (0..batch.documents()).map(|i| batch.document(i)).collect();
    let bands = mask.lower(batch).unwrap();
    let expected: Vec<bool> =
        (0..tokens * tokens).map(|cell| attends(mask, &documents, cell / tokens, cell % tokens)).collect();
    assert_eq!(bands.area(), expected.iter().filter(|&&cell| cell).count() as u64, "{mask:?}");

    let natural = vec![(0, Run { start: 0, step: 1, len: tokens })];
    // Shards one after another, as gathered; without padding, which leaves gaps in the buffer.
    let mut gathered = Vec::new();
    let mut first = 0;
    for rank in 0..ranks {
        gathered.extend(placement.valid_runs_of(rank).into_iter().map(|(row, run)| (first + row, run)));
        first += placement.rows_of(rank);
    }
    for keys in [natural, gathered] {
        let mut token_of_row = vec![None; tokens];
        for (row, run) in &keys {
            (0..run.len).for_each(|i| token_of_row[row + i] = Some(run.token(i)));
        }
        let mut covered = vec![0; tokens * tokens];
        for rank in 0..ranks {
            let pieces = tile(&placement.valid_runs_of(rank), &keys, &bands);
            assert!(pieces.is_sorted_by_key(|piece| (piece.q_row, piece.k_row)));
            let mut seen = vec![false; tokens];
            for piece in &pieces {
                let mut area = 0;
                for i in 0..piece.q.len {
                    let q = placement.token_of(rank, piece.q_row + i);
                    assert_eq!(q, piece.q.token(i));
                    for row in piece.keys(i) {
                        assert_eq!(token_of_row[row], Some(piece.k.token(row - piece.k_row)));
                        covered[q * tokens + piece.k.token(row - piece.k_row)] += 1;
                        seen[row] = true;
                        area += 1;
                    }
                }
                assert!(area > 0 && area == piece.area(), "{piece:?}");
            }
            let touched = touched(&pieces);
            assert!(touched.windows(2).all(|pair| pair[0].end < pair[1].start), "merged: {touched:?}");
            assert!((0..tokens).all(|row| seen[row] == touched.iter().any(|rows| rows.contains(&row))));
        }
        for (cell, (&times, &attended)) in covered.iter().zip(&expected).enumerate() {
            let (q, k) = (cell / tokens, cell % tokens);
            assert_eq!(times, usize::from(attended), "query {q}, key {k} under {mask:?} on {documents:?}");
        }
    }
}

fn check_covers<L: Layout>(batch: &L::Batch, mask: &Mask, ranks: usize) {
    check_cover::<Contiguous, L>(batch, mask, ranks);
    check_cover::<Zigzag, L>(batch, mask, ranks);
    check_cover::<Striped, L>(batch, mask, ranks);
    check_cover::<Striped<3>, L>(batch, mask, ranks);
}

/// Any mask but slices; prefixes for eight documents, to be cut to how many there are.
fn masks() -> impl Strategy<Value = Mask> {
    let reach = || prop::option::of(0usize..20);
    prop_oneof![
        Just(Mask::Full),
        Just(Mask::Causal),
        (reach(), reach()).prop_map(|(left, right)| Mask::Window { left, right }),
        prop::collection::vec(0usize..50, 8).prop_map(Mask::Prefix),
    ]
}

fn for_documents(mask: Mask, documents: usize) -> Mask {
    match mask {
        Mask::Prefix(mut prefix) => {
            prefix.truncate(documents);
            Mask::Prefix(prefix)
        }
        mask => mask,
    }
}

/// Slices as corners and shape, to be scaled to the batch.
fn slices() -> impl Strategy<Value = Vec<(Vec<usize>, SliceKind)>> {
    let kinds = [SliceKind::Full, SliceKind::Causal, SliceKind::InvCausal, SliceKind::BiCausal];
    let slice = (prop::collection::vec(0usize..1000, 4), prop::sample::select(kinds.to_vec()));
    prop::collection::vec(slice, 0..5)
}

fn scaled(slices: &[(Vec<usize>, SliceKind)], tokens: usize) -> Vec<Slice> {
    let at = |corner: usize| corner * (tokens + 1) / 1000;
    let range = |a: usize, b: usize| at(a.min(b))..at(a.max(b));
    slices.iter().map(|(c, kind)| Slice { q: range(c[0], c[1]), k: range(c[2], c[3]), kind: *kind }).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 384, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn orders_of_packs(lengths in lengths(), ranks in 1usize..10) {
        check_orders::<Thd>(&packed(&lengths), ranks);
    }

    #[test]
    fn orders_of_dense_batches(batch in 0usize..4, seq in 0usize..48, ranks in 1usize..10) {
        check_orders::<Bshd>(&Dense { batch, seq }, ranks);
        check_orders::<Sbhd>(&Dense { batch, seq }, ranks);
    }

    #[test]
    fn packs_are_covered_exactly(lengths in lengths(), mask in masks(), ranks in 1usize..10) {
        let batch = packed(&lengths);
        check_covers::<Thd>(&batch, &for_documents(mask, batch.documents()), ranks);
    }

    #[test]
    fn dense_batches_are_covered_exactly(batch in 0usize..4, seq in 0usize..32, mask in masks(), ranks in 1usize..10) {
        check_covers::<Sbhd>(&Dense { batch, seq }, &for_documents(mask, batch), ranks);
    }

    /// Slices are covered exactly where they are disjoint, and refused with a cell that two share where they are not.
    #[test]
    fn slices_are_covered_exactly_or_refused(lengths in lengths(), slices in slices(), ranks in 1usize..10) {
        let batch = packed(&lengths);
        let slices = scaled(&slices, batch.tokens());
        let valid = |token: usize| (0..batch.documents()).any(|i| batch.document(i).valid_range().contains(&token));
        let valid: Vec<usize> = (0..batch.tokens()).filter(|&token| valid(token)).collect();
        let times = |q: usize, k: usize| slices.iter().filter(|slice| in_slice(slice, q, k)).count();
        let disjoint = valid.iter().all(|&q| valid.iter().all(|&k| times(q, k) < 2));
        let mask = Mask::Slices(slices.clone());
        match mask.lower(&batch) {
            Ok(_) => {
                prop_assert!(disjoint);
                check_covers::<Thd>(&batch, &mask, ranks);
            }
            Err(Error::Mask(MaskError::Overlap { first, second, query, key })) => {
                let (q, k) = (query as usize, key as usize);
                prop_assert!(!disjoint && first < second && valid.contains(&q) && valid.contains(&k));
                prop_assert!(in_slice(&slices[first], q, k) && in_slice(&slices[second], q, k));
            }
            Err(error) => prop_assert!(false, "{}", error),
        }
    }
}
