//! Reading typed fields of a JSON object, with errors that name field, value and what is allowed.

use serde_json::{Map, Value, json};

use crate::error::{Error, ModelError, Result};

/// The largest size accepted, so that products of two sizes do not overflow.
const LARGEST: u64 = i32::MAX as u64;

/// "field is value; what to do".
pub(super) fn refusal(field: &str, value: &Value, allowed: &str) -> Error {
    ModelError::Config(format!("\"{field}\" is {value}: {allowed}")).into()
}

/// An object whose `null`s count as missing.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    /// The object.
    pub map: &'a Map<String, Value>,
    /// Put before the names of fields in messages.
    pub path: &'static str,
}

impl<'a> Fields<'a> {
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// The refusal of a field's present value.
    pub fn refuse(&self, key: &str, allowed: &str) -> Error {
        refusal(&format!("{}{key}", self.path), self.map.get(key).unwrap_or(&Value::Null), allowed)
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
        let read = |value: &Value| value.as_u64().filter(|n| (1..=LARGEST).contains(n)).map(|n| n as usize);
        self.read(key, default, "must be a whole number from 1 to 2147483647", read)
    }

    /// A whole number from 0 on.
    pub fn count(&self, key: &str, default: Option<usize>) -> Result<usize> {
        let read = |value: &Value| value.as_u64().filter(|n| *n <= LARGEST).map(|n| n as usize);
        self.read(key, default, "must be a whole number from 0 to 2147483647", read)
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
            Some(Value::Object(map)) => Ok(Some(Fields { map, path })),
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

    /// [`Fields::only`] for one number.
    pub fn only_number(&self, key: &str, number: f64) -> Result<()> {
        self.only(key, &[json!(number)])
    }
}
