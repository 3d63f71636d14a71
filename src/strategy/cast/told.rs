//! What a rank tells the ranks that it fetches rows from, so that they need not solve its stages: a few numbers.

use crate::solve::stages::Merging;
use crate::strategy::cast::cut::{Cut, Solved};

/// What the rank that fetches tells an owner of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Told {
    /// All that the rank fetches, and its stages.
    pub(super) cut: Cut,
    /// The owner's first row in the buffer of all that the rank fetches.
    pub(super) first: usize,
}

impl Told {
    /// What a rank with these stages tells `owner`, if it fetches rows of it.
    pub(super) fn by(solved: &Solved, owner: usize) -> Option<Self> {
        Some(Told { cut: solved.cut(), first: solved.first_row(owner)? })
    }

    /// How many numbers it is.
    pub(super) const NUMBERS: usize = 4;

    /// Rows of the buffer, the owner's first row in it, and the ends of stages forward and backward.
    pub(super) fn numbers(self) -> [i64; Self::NUMBERS] {
        let Told { cut: Cut { rows, ends: [forward, backward] }, first } = self;
        [rows as i64, first as i64, forward as i64, backward as i64]
    }

    /// The same from the numbers of a rank that fetches `fetched` of the owner's rows, and at most `most` of all ranks.
    ///
    /// # Errors
    /// What the numbers should have been.
    pub(super) fn read(numbers: &[i64], fetched: usize, most: usize, merging: Merging) -> Result<Self, String> {
        let expected =
            |what: String| Err(format!("{what} ([rows fetched, first of them, ends of stages by direction])"));
        let &[rows, first, forward, backward] = numbers else {
            return expected(format!("{} numbers", Self::NUMBERS));
        };
        let Some(rows) = usize::try_from(rows).ok().filter(|rows| (fetched..=most).contains(rows)) else {
            return expected(format!("{fetched} to {most} rows fetched"));
        };
        let last = rows - fetched;
        let Some(first) = usize::try_from(first).ok().filter(|&first| first <= last) else {
            return expected(format!("a first row of 0 to {last}"));
        };
        let atoms = merging.parts().min(rows);
        let is_end =
            |ends: i64| u64::try_from(ends).ok().filter(|ends| ends.checked_ilog2() == (atoms as u32).checked_sub(1));
        let (Some(forward), Some(backward)) = (is_end(forward), is_end(backward)) else {
            return expected(format!("stages whose last one ends with part {atoms} of {atoms}"));
        };
        Ok(Told { cut: Cut { rows, ends: [forward, backward] }, first })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_as_they_were_told() {
        for (merging, ends) in [(Merging::Stages, [0x8000, 0x8421]), (Merging::Parts(3), [0b100, 0b111])] {
            let told = Told { cut: Cut { rows: 40, ends }, first: 13 };
            assert_eq!(Told::read(&told.numbers(), 20, 64, merging), Ok(told));
        }
    }

    #[test]
    fn numbers_out_of_bounds_are_refused_with_the_bounds() {
        let refused = |numbers: &[i64], expected: &str| {
            let message = Told::read(numbers, 20, 64, Merging::Parts(3)).unwrap_err();
            assert!(message.starts_with(expected), "{numbers:?}: {message}");
        };
        refused(&[40, 13, 4], "4 numbers");
        refused(&[40, 13, 4, 4, 4], "4 numbers");
        for rows in [-1, 0, 19, 65, i64::MAX, i64::MIN] {
            refused(&[rows, 0, 4, 4], "20 to 64 rows");
        }
        for first in [-1, 21, i64::MAX] {
            refused(&[40, first, 4, 4], "a first row of 0 to 20");
        }
        // No stage, none that ends with the last part, one that ends behind it.
        for ends in [-1, 0, 1, 3, 8, 12, i64::MAX, i64::MIN] {
            refused(&[40, 13, ends, 4], "stages whose last one ends with part 3");
            refused(&[40, 13, 4, ends], "stages whose last one ends with part 3");
        }
    }
}
