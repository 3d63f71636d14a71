//! Schedules against lower bounds, against the outcomes of other schedulers, and against the rules that bind them.
