//! Broken strategies fail the check that is there to catch them.
