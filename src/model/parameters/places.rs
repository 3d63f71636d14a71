//! Where parameters lie in memory: all in one flat buffer, linear layers of one input side by side.

use std::ops::Range;

use super::ParameterSpec;

/// A matrix of a flat buffer, which holds one parameter, or several side by side; index of a
/// [`ParameterSet`](super::ParameterSet).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StoredId(usize);

/// A matrix of a flat buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub offset: usize,
    pub rows: usize,
    pub cols: usize,
    /// Whether weight decay applies, to all of it or to nothing.
    decays: bool,
}

/// The columns of a matrix that are a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub stored: StoredId,
    pub columns: Range<usize>,
}

/// Where the parameters of a list are. What weight decay applies to comes first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Places {
    stored: Vec<Stored>,
    /// By parameter.
    of: Vec<Place>,
    decayed: usize,
    elements: usize,
}

impl Places {
    /// A parameter in a matrix of its own.
    pub fn alone(&mut self, spec: &ParameterSpec) -> StoredId {
        let id = self.matrix(spec);
        self.beside(id, spec);
        id
    }

    /// A matrix that has no columns yet, for parameters like this one.
    pub fn matrix(&mut self, first: &ParameterSpec) -> StoredId {
        let (rows, decays) = (first.memory_shape().0, first.decays());
        self.stored.push(Stored { offset: 0, rows, cols: 0, decays });
        StoredId(self.stored.len() - 1)
    }

    /// The next parameter, beside those that the matrix holds already.
    pub fn beside(&mut self, id: StoredId, spec: &ParameterSpec) {
        let (stored, (_, cols)) = (&mut self.stored[id.0], spec.memory_shape());
        self.of.push(Place { stored: id, columns: stored.cols..stored.cols.saturating_add(cols) });
        stored.cols = stored.cols.saturating_add(cols);
    }

    /// Every parameter has its place: matrices come one after another.
    pub fn laid_out(mut self) -> Self {
        let mut end = 0usize;
        for decays in [true, false] {
            for stored in self.stored.iter_mut().filter(|stored| stored.decays == decays) {
                // Of a valid configuration it never saturates.
                stored.offset = end;
                end = end.saturating_add(stored.rows.saturating_mul(stored.cols));
            }
            self.decayed = if decays { end } else { self.decayed };
        }
        self.elements = end;
        self
    }

    pub fn stored(&self, id: StoredId) -> &Stored {
        &self.stored[id.0]
    }

    pub fn of(&self, parameter: usize) -> &Place {
        &self.of[parameter]
    }

    /// Elements from the first on that weight decay applies to.
    pub fn decayed(&self) -> usize {
        self.decayed
    }

    pub fn elements(&self) -> usize {
        self.elements
    }
}
