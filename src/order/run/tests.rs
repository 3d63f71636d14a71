//! Runs and rows against lists of indices.

use super::*;
use proptest::prelude::*;

fn run() -> impl Strategy<Value = Run> {
    (0usize..40, 1usize..9, 0usize..12).prop_map(|(start, step, len)| Run { start, step, len })
}

proptest! {
    #[test]
    fn what_two_runs_share_is_what_both_list(a in run(), b in run()) {
        let expected: Vec<usize> = a.iter().filter(|x| b.iter().any(|y| y == *x)).collect();
        match a.common(&b) {
            None => prop_assert!(expected.is_empty(), "{:?}", expected),
            Some((in_a, in_b)) => {
                prop_assert_eq!(in_a.iter().map(|i| a.token(i)).collect::<Vec<_>>(), expected.clone());
                prop_assert_eq!(b.at(in_b).iter().collect::<Vec<_>>(), expected);
            }
        }
    }

    #[test]
    fn rows_list_what_was_pushed(runs in proptest::collection::vec(run(), 0..6)) {
        let rows: Rows = runs.iter().copied().collect();
        let expected: Vec<usize> = runs.iter().flat_map(|run| run.iter()).collect();
        prop_assert_eq!(rows.iter().collect::<Vec<_>>(), expected.clone());
        let end = expected.iter().map(|x| x + 1).max().unwrap_or(0);
        prop_assert_eq!((rows.len(), rows.end()), (expected.len(), end));
        prop_assert_eq!(&expected.iter().copied().collect::<Rows>(), &rows);
        prop_assert_eq!(rows.are_all(expected.len()), expected.iter().copied().eq(0..expected.len()));
        for part in [0..rows.len(), 0..rows.len() / 2, rows.len() / 3..rows.len(), rows.len()..rows.len()] {
            let mut found = vec![usize::MAX; part.len()];
            rows.runs_of(part.clone()).for_each(|(at, run)| {
                run.iter().enumerate().for_each(|(i, row)| found[at + i] = row);
            });
            prop_assert_eq!(&found, &expected[part]);
        }
    }
}

#[test]
fn neighbours_become_one_run() {
    let list: Rows = [3usize, 4, 5, 9, 13, 17, 2].into_iter().collect();
    assert_eq!(
        list.runs(),
        [Run { start: 3, step: 1, len: 3 }, Run { start: 9, step: 4, len: 3 }, Run { start: 2, step: 1, len: 1 }]
    );
    assert_eq!(format!("{list:?}"), "[3..6, 9..18 by 4, 2]");
    assert_eq!(serde_json::to_string(&list).unwrap(), "[[3,1,3],[9,4,3],[2,1,1]]");
    assert_ne!(list, [3usize, 4, 5, 9, 13, 17].into_iter().collect());
}
