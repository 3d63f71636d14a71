//! Reading typed fields of a JSON object, with errors that name field, value and what is allowed.

use serde_json::{Map, Value};

use crate::error::{Error, ModelError, Result};

/// The key of [`Config::mtp_depth`](super::Config::mtp_depth).
pub(super) const MTP_DEPTH: &str = "num_nextn_predict_layers";

/// The largest size accepted, so that products of two sizes do not overflow.
const LARGEST: usize = i32::MAX as usize;
/// Values are shown up to this many characters.
const SHOWN: usize = 60;

/// "field is value", cut where the value is long.
pub(super) fn is(field: &str, value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("\"{field}\" is {}..", &text[..end]),
        None => format!("\"{field}\" is {text}"),
    }
}

/// "field is value: what to do".
pub(super) fn refusal(field: &str, value: &Value, allowed: &str) -> Error {
    ModelError::Config(format!("{}: {allowed}", is(field, value))).into()
}

/// A whole number, which some programs write as 8192.0.
fn whole(value: &Value) -> Option<usize> {
    let float = || value.as_f64().filter(|x| x.fract() == 0.0 && (0.0..=LARGEST as f64).contains(x)).map(|x| x as u64);
    value.as_u64().or_else(float).and_then(|number| usize::try_from(number).ok())
}

/// An object whose `null`s count as missing.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    /// The object.
    pub map: &'a Map<String, Value>,
    /// Put before the names of fields in messages.
    pub path: &'static str,
    /// Whether fields that are refused may be ignored instead, which messages then say.
    pub ignorable: bool,
}

impl<'a> Fields<'a> {
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// The refusal of a field's present value.
    pub fn refuse(&self, key: &str, allowed: &str) -> Error {
        let name = format!("{}{key}", self.path);
        let hint = match self.ignorable {
            true => format!("; --ignore-config-field {name} reads the file without it"),
            false => String::new(),
        };
        refusal(&name, self.map.get(key).unwrap_or(&Value::Null), &format!("{allowed}{hint}"))
    }

    fn read<T>(&self, key: &str, default: Option<T>, allowed: &str, read: impl Fn(&Value) -> Option<T>) -> Result<T> {
        match (self.get(key), default) {
            (Some(value), _) => read(value).ok_or_else(|| self.refuse(key, allowed)),
            (None, Some(default)) => Ok(default),
            (None, None) => {
                Err(ModelError::Config(format!("\"{}{key}\" is missing: add it to config.json ({allowed})", self.path))
                    .into())
            }
        }
    }

    /// A whole number from 1 on.
    pub fn size(&self, key: &str, default: Option<usize>) -> Result<usize> {
        self.whole_in(key, default, 1, LARGEST)
    }

    /// A whole number from 0 on.
    pub fn count(&self, key: &str, default: Option<usize>) -> Result<usize> {
        self.whole_in(key, default, 0, LARGEST)
    }

    /// A whole number in a range that includes both ends.
    pub fn whole_in(&self, key: &str, default: Option<usize>, least: usize, most: usize) -> Result<usize> {
        let allowed = format!("must be a whole number from {least} to {most}");
        self.read(key, default, &allowed, |value| whole(value).filter(|number| (least..=most).contains(number)))
    }

    /// A finite number above 0.
    pub fn positive(&self, key: &str, default: Option<f64>) -> Result<f64> {
        let read = |value: &Value| value.as_f64().filter(|x| x.is_finite() && *x > 0.0);
        self.read(key, default, "must be a number above 0", read)
    }

    /// A finite number from 0 on.
    pub fn not_negative(&self, key: &str, default: Option<f64>) -> Result<f64> {
        let read = |value: &Value| value.as_f64().filter(|x| x.is_finite() && *x >= 0.0);
        self.read(key, default, "must be a number of at least 0", read)
    }

    pub fn flag(&self, key: &str, default: Option<bool>) -> Result<bool> {
        self.read(key, default, "must be true or false", Value::as_bool)
    }

    pub fn word(&self, key: &str) -> Result<Option<&'a str>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| self.refuse(key, "must be a string")),
        }
    }

    pub fn object(&self, key: &str, path: &'static str) -> Result<Option<Fields<'a>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields { map, path, ignorable: false })),
            Some(_) => Err(self.refuse(key, "must be an object or null")),
        }
    }

    /// Refuses a value other than the only one supported; numbers are compared as numbers.
    pub fn only(&self, key: &str, values: &[Value]) -> Result<()> {
        let same = |a: &Value, b: &Value| match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => a == b,
            _ => a == b,
        };
        match self.get(key) {
            Some(found) if !values.iter().any(|value| same(found, value)) => {
                let known = values.iter().map(Value::to_string).collect::<Vec<_>>().join(" or ");
                Err(self.refuse(key, &format!("only {known} is supported")))
            }
            _ => Ok(()),
        }
    }

    /// [`Fields::only`] for `false`.
    pub fn only_false(&self, key: &str, why: &str) -> Result<()> {
        match self.get(key) {
            None | Some(Value::Bool(false)) => Ok(()),
            Some(_) => Err(self.refuse(key, why)),
        }
    }
}
