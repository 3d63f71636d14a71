//! Options whose value is a name: what help lists and shells complete comes from the tables that names are looked up
//! in, and a name that is in none is refused by who looks it up.

use std::ffi::OsStr;

use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use clap::{Arg, Command};
use context_parallel::error::{Result, SupportError};
use context_parallel::model::Config;
use context_parallel::strategy::select;
use context_parallel::tensor::DType;

use super::super::hardware::Hardware;
use super::refusals::not_available;

/// How ranks exchange data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Threads,
    #[cfg(feature = "mpi")]
    Mpi,
    #[cfg(feature = "cuda")]
    Nccl,
}

/// Names, the canonical one first, and what they stand for.
pub type Table<T> = &'static [(&'static [&'static str], T)];

pub const DTYPES: Table<DType> =
    &[(&["f32"], DType::F32), (&["bf16"], DType::Bf16), (&["f16"], DType::F16), (&["f64"], DType::F64)];
pub const TRANSPORTS: Table<Transport> = &[
    (&["threads"], Transport::Threads),
    #[cfg(feature = "mpi")]
    (&["mpi"], Transport::Mpi),
    #[cfg(feature = "cuda")]
    (&["nccl"], Transport::Nccl),
];
pub const DEVICES: Table<Hardware> = &[
    (&["cpu"], Hardware::Cpu),
    #[cfg(feature = "cuda")]
    (&["cuda"], Hardware::Cuda),
];

/// Takes any text, and tells help and shells the names that there are.
#[derive(Clone)]
pub struct Names(fn() -> Vec<PossibleValue>);

impl Names {
    pub const STRATEGIES: Names = Names(|| {
        let named = |name| PossibleValue::new(name).aliases(select::aliases(name));
        select::strategies().into_iter().map(named).collect()
    });
    pub const LAYOUTS: Names = Names(|| plain(select::layouts()));
    pub const ORDERS: Names = Names(|| plain(select::all_orders()));
    pub const KERNELS: Names = Names(|| plain(select::kernels()));
    pub const PRESETS: Names = Names(|| plain(Config::PRESETS));
    pub const DTYPES: Names = Names(|| of(DTYPES));
    pub const TRANSPORTS: Names = Names(|| of(TRANSPORTS));
    pub const DEVICES: Names = Names(|| of(DEVICES));

    /// The names that a function lists.
    pub const fn new(names: fn() -> Vec<PossibleValue>) -> Self {
        Names(names)
    }
}

/// A number format.
pub fn dtype(name: &str) -> Result<DType> {
    pick("dtype", name, DTYPES, &[])
}

fn plain(names: impl IntoIterator<Item = &'static str>) -> Vec<PossibleValue> {
    names.into_iter().map(PossibleValue::new).collect()
}

/// The canonical names of a table in words.
pub fn known<T>(table: Table<T>) -> String {
    table.iter().map(|(names, _)| names[0]).collect::<Vec<_>>().join(", ")
}

/// The names of a table.
pub fn of<T>(table: Table<T>) -> Vec<PossibleValue> {
    table.iter().map(|(names, _)| PossibleValue::new(names[0]).aliases(&names[1..])).collect()
}

impl TypedValueParser for Names {
    type Value = String;

    fn parse_ref(
        &self,
        command: &Command,
        option: Option<&Arg>,
        value: &OsStr,
    ) -> std::result::Result<String, clap::Error> {
        StringValueParser::new().parse_ref(command, option, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new((self.0)().into_iter()))
    }
}

/// The entry of `table` that has `name` among its names. Names in `later` are known, but not to this version.
pub fn pick<T: Copy>(what: &'static str, name: &str, table: Table<T>, later: &[&str]) -> Result<T> {
    if let Some(&(_, value)) = table.iter().find(|(names, _)| names.contains(&name)) {
        return Ok(value);
    }
    let names = known(table);
    if later.contains(&name) {
        let instead = if table.len() == 1 { format!("use --{what} {names}") } else { format!("choose one of {names}") };
        return Err(not_available(format!("--{what} {name}"), instead));
    }
    Err(SupportError::Unknown { what, name: name.to_string(), known: names }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_that_help_lists_is_known() {
        let names = |names: &Names| -> Vec<String> {
            let values = names.possible_values().unwrap();
            values.flat_map(|value| value.get_name_and_aliases().map(str::to_string).collect::<Vec<_>>()).collect()
        };
        let strategies = names(&Names::STRATEGIES);
        assert!(strategies.contains(&"ring".to_string()) && strategies.contains(&"a2a+p2p".to_string()));
        for strategy in strategies {
            let choice =
                select::Choice { strategy, layout: "thd".into(), kernel: "flash".into(), ..Default::default() };
            assert!(select::checked(&select::Choice { degree: 1, ..choice.clone() }).is_ok(), "{}", choice.strategy);
        }
        for dtype in names(&Names::DTYPES) {
            assert!(pick("dtype", &dtype, DTYPES, &[]).is_ok());
        }
        assert_eq!(names(&Names::PRESETS), Config::PRESETS);
    }
}
