//! Degrees: how many ranks share a sequence, known at compile time or at run time.

use std::fmt;
use std::ops::Rem;

use serde::Serialize;
use typenum::{Const, NonZero, ToUInt, U, U0};

use crate::error::{PlacementError, Result};

/// A number of ranks.
///
/// [`Fixed`] is part of the type and free; [`Runtime`] is a value. Code written for one works for the other.
pub trait Degree: Copy + Clone + fmt::Debug + PartialEq + Eq + Send + Sync + 'static {
    /// The number, if the type says it.
    const FIXED: Option<usize>;

    /// A degree of `ranks`, or nothing if the type says another number.
    fn of(ranks: usize) -> Option<Self>;

    /// The number of ranks.
    fn ranks(self) -> usize;

    /// Refuses 0.
    fn checked(self) -> Result<usize> {
        match self.ranks() {
            0 => Err(PlacementError::ZeroDegree.into()),
            ranks => Ok(ranks),
        }
    }
}

/// A degree that is known at compile time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Fixed<const RANKS: usize>;

/// A degree that is known at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Runtime(pub usize);

impl<const RANKS: usize> Degree for Fixed<RANKS> {
    const FIXED: Option<usize> = Some(RANKS);

    fn of(ranks: usize) -> Option<Self> {
        (ranks == RANKS).then_some(Fixed)
    }

    fn ranks(self) -> usize {
        RANKS
    }
}

impl Degree for Runtime {
    const FIXED: Option<usize> = None;

    fn of(ranks: usize) -> Option<Self> {
        Some(Runtime(ranks))
    }

    fn ranks(self) -> usize {
        self.0
    }
}

static_assertions::assert_eq_size!(Fixed<8>, ());

/// The number zero, as the remainder of a division between types.
pub trait Zero {}
impl Zero for U0 {}

/// Degrees that divide `NUMBER`, which is not 0, as far as the compiler sees: a degree of run time is checked at run
/// time.
///
/// The compiler divides numbers up to 1024, and larger powers of two. A degree of your own implements this for the
/// numbers of heads that it is used with.
#[diagnostic::on_unimplemented(message = "`{Self}` does not divide {NUMBER}")]
pub trait Divides<const NUMBER: usize>: Degree {}

impl<const NUMBER: usize> Divides<NUMBER> for Runtime {}

#[diagnostic::do_not_recommend]
impl<const RANKS: usize, const NUMBER: usize> Divides<NUMBER> for Fixed<RANKS>
where
    Const<RANKS>: ToUInt,
    Const<NUMBER>: ToUInt,
    U<NUMBER>: NonZero + Rem<U<RANKS>>,
    <U<NUMBER> as Rem<U<RANKS>>>::Output: Zero,
{
}

/// Ranks as a grid: `outer` groups of `inner` ranks each.
///
/// Token orders and exchanges count *logical* ranks, group by group: logical rank `o * inner + i` is member `i` of
/// group `o`. The grid says which rank of the communicator that is, so that either level can be placed on
/// neighbouring ranks (the cheaper links).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Grid {
    /// Number of groups.
    pub outer: usize,
    /// Ranks of a group.
    pub inner: usize,
    /// Whether the ranks of a group are neighbours in the communicator; else the groups' members of one index are.
    pub inner_adjacent: bool,
}

impl fmt::Display for Grid {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        let apart = if self.inner_adjacent { "" } else { ", inner apart" };
        write!(formatter, "{}x{}{apart}", self.outer, self.inner)
    }
}

impl Grid {
    /// Ranks that form groups of one.
    pub fn line(ranks: usize) -> Self {
        Grid { outer: ranks, inner: 1, inner_adjacent: true }
    }

    /// The most even factorisation of `ranks` whose inner part divides `q_heads`; of two, that with the larger inner
    /// part.
    pub fn most_even(ranks: usize, q_heads: usize) -> Self {
        let fits = |&inner: &usize| ranks.is_multiple_of(inner) && q_heads.is_multiple_of(inner);
        let uneven = |&inner: &usize| (inner.max(ranks / inner), usize::MAX - inner);
        let inner = (1..=ranks).filter(fits).min_by_key(uneven).unwrap_or(1);
        Grid { outer: ranks / inner, inner, inner_adjacent: true }
    }

    /// Every grid of so many ranks with both parts above 1, with each of the two levels on neighbours.
    pub fn mixed(ranks: usize) -> impl Iterator<Item = Grid> {
        let inner = (2..ranks).filter(move |&inner| ranks.is_multiple_of(inner));
        inner.flat_map(move |inner| {
            [true, false].map(|inner_adjacent| Grid { outer: ranks / inner, inner, inner_adjacent })
        })
    }

    /// Number of ranks; the largest number there is where the product is beyond it ([`Grid::checked`] refuses that).
    pub fn ranks(self) -> usize {
        self.outer.saturating_mul(self.inner)
    }

    /// Refuses a level of 0 ranks, and levels whose product is no number of ranks.
    ///
    /// # Errors
    /// [`PlacementError::Grid`].
    pub fn checked(self) -> Result<Self> {
        match self.outer.checked_mul(self.inner) {
            None | Some(0) => Err(PlacementError::Grid { grid: self }.into()),
            Some(_) => Ok(self),
        }
    }

    /// How the ranks are renumbered: nothing where logical ranks are those of the communicator, else the grid's levels.
    /// Two grids of as many ranks with the same renumbering give every token to the same rank.
    pub fn renumbering(self) -> Option<(usize, usize)> {
        (!self.inner_adjacent && self.outer > 1 && self.inner > 1).then_some((self.outer, self.inner))
    }

    /// Whether both grids have the same groups of the same ranks.
    pub fn same_groups(self, other: Grid) -> bool {
        (self.outer, self.inner, self.renumbering()) == (other.outer, other.inner, other.renumbering())
    }

    /// Group and place in the group of a rank.
    pub fn place(self, rank: usize) -> (usize, usize) {
        match self.inner_adjacent {
            true => (rank / self.inner, rank % self.inner),
            false => (rank % self.outer, rank / self.outer),
        }
    }

    /// The rank at place `inner` of group `outer`.
    pub fn rank(self, outer: usize, inner: usize) -> usize {
        match self.inner_adjacent {
            true => outer * self.inner + inner,
            false => inner * self.outer + outer,
        }
    }

    /// The number that token orders give a rank.
    pub fn logical(self, rank: usize) -> usize {
        let (outer, inner) = self.place(rank);
        outer * self.inner + inner
    }

    /// The rank that token orders give this number.
    pub fn of_logical(self, logical: usize) -> usize {
        self.rank(logical / self.inner, logical % self.inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_and_runtime_degrees() {
        assert_eq!((Fixed::<4>::of(4), Fixed::<4>::of(3)), (Some(Fixed), None));
        assert_eq!(Runtime::of(3), Some(Runtime(3)));
        assert_eq!((Fixed::<4>.checked(), Runtime(5).checked()), (Ok(4), Ok(5)));
        assert!(Fixed::<0>.checked().is_err() && Runtime(0).checked().is_err());
    }

    static_assertions::assert_impl_all!(Fixed<1>: Divides<1>, Divides<7>, Divides<1024>);
    static_assertions::assert_impl_all!(Fixed<4>: Divides<4>, Divides<8>, Divides<2048>);
    static_assertions::assert_impl_all!(Runtime: Divides<8>, Divides<1536>);
    static_assertions::assert_not_impl_any!(Fixed<4>: Divides<0>, Divides<2>, Divides<6>);
    static_assertions::assert_not_impl_any!(Fixed<0>: Divides<0>, Divides<1>);

    #[test]
    fn a_grid_places_either_level_on_neighbours() {
        let inner = Grid { outer: 3, inner: 2, inner_adjacent: true };
        let outer = Grid { inner_adjacent: false, ..inner };
        assert_eq!(
            Vec::from_iter((0..6).map(|rank| inner.place(rank))),
            [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
        );
        assert_eq!(
            Vec::from_iter((0..6).map(|rank| outer.place(rank))),
            [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]
        );
        for grid in [inner, outer, Grid::line(6)] {
            for rank in 0..6 {
                let (o, i) = grid.place(rank);
                assert_eq!((grid.rank(o, i), grid.of_logical(grid.logical(rank))), (rank, rank));
            }
        }
        assert_eq!(Vec::from_iter((0..6).map(|rank| inner.logical(rank))), Vec::from_iter(0..6));
    }

    #[test]
    fn renumbering_is_what_tells_grids_apart() {
        let grids: Vec<Grid> =
            [12, 4].into_iter().flat_map(|ranks| Grid::mixed(ranks).chain([Grid::line(ranks)])).collect();
        let numbers = |grid: Grid| Vec::from_iter((0..grid.ranks()).map(|rank| grid.logical(rank)));
        for (&one, &other) in grids.iter().flat_map(|one| grids.iter().map(move |other| (one, other))) {
            let same = (one.ranks(), one.renumbering()) == (other.ranks(), other.renumbering());
            assert_eq!(same, numbers(one) == numbers(other), "{one} and {other}");
        }
        let line = Grid { inner_adjacent: false, ..Grid::line(4) };
        assert!(
            line.same_groups(Grid::line(4)) && !line.same_groups(Grid { outer: 1, inner: 4, inner_adjacent: true })
        );
    }

    #[test]
    fn grids_without_a_number_of_ranks_are_refused() {
        for (outer, inner) in [(0, 2), (2, 0), (usize::MAX, 2)] {
            let grid = Grid { outer, inner, inner_adjacent: true };
            let message = grid.checked().unwrap_err().to_string();
            assert!(message.contains(&format!("{outer}x{inner}")), "{message}");
        }
        assert_eq!(Grid::line(3).checked(), Ok(Grid::line(3)));
    }

    #[test]
    fn the_most_even_grid_has_an_inner_part_that_divides_the_heads() {
        let split = |ranks, heads| {
            let grid = Grid::most_even(ranks, heads);
            (grid.outer, grid.inner)
        };
        assert_eq!(split(4, 8), (2, 2));
        assert_eq!(split(6, 8), (3, 2));
        assert_eq!(split(6, 6), (2, 3), "the larger inner part where both are as even");
        assert_eq!(split(8, 8), (2, 4));
        assert_eq!(split(8, 2), (4, 2));
        assert_eq!(split(120, 120), (10, 12));
        assert_eq!((split(5, 4), split(5, 5), split(1, 3)), ((5, 1), (1, 5), (1, 1)));
    }
}
