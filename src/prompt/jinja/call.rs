//! The evaluated arguments of a call.

use std::rc::Rc;

use super::{
    fault::{Fault, Result},
    value::Value,
};

#[derive(Clone, Debug, Default)]
pub(super) struct Call {
    pub(super) positional: Vec<Value>,
    pub(super) named: Vec<(Rc<str>, Value)>,
}

impl Call {
    /// The argument of each parameter, by position or name; `None` where it is not given.
    ///
    /// # Errors
    /// When there are more arguments, or others.
    pub(super) fn bind<const N: usize>(
        &self,
        function: &str,
        params: [&str; N],
    ) -> Result<[Option<Value>; N]> {
        let mut bound = [const { None }; N];
        if self.positional.len() > N {
            let given = self.positional.len();
            return Err(Fault::types(format!(
                "{function}() takes at most {N} arguments ({given} given)"
            )));
        }
        for (slot, value) in bound.iter_mut().zip(&self.positional) {
            *slot = Some(value.clone());
        }
        for (name, value) in &self.named {
            let Some(i) = params.iter().position(|p| *p == &**name) else {
                return Err(Fault::types(format!(
                    "{function}() got an unexpected keyword argument '{name}'"
                )));
            };
            if bound[i].is_some() {
                return Err(Fault::types(format!(
                    "{function}() got multiple values for argument '{name}'"
                )));
            }
            bound[i] = Some(value.clone());
        }
        Ok(bound)
    }
}

/// An argument that must be there.
pub(super) fn required(function: &str, name: &str, value: Option<Value>) -> Result<Value> {
    value.ok_or_else(|| {
        Fault::types(format!(
            "{function}() missing a required argument: '{name}'"
        ))
    })
}

/// A whole number, or what stands for one that is not given.
pub(super) fn int_or(function: &str, value: Option<&Value>, default: i128) -> Result<i128> {
    match value {
        None => Ok(default),
        Some(value) => value.as_int().ok_or_else(|| {
            Fault::types(format!(
                "{function}(): '{}' object cannot be interpreted as an integer",
                value.type_name()
            ))
        }),
    }
}

/// A text that must be one.
pub(super) fn text<'v>(function: &str, value: &'v Value) -> Result<&'v str> {
    value.as_str().ok_or_else(|| {
        Fault::types(format!(
            "{function}() argument must be str, not {}",
            value.type_name()
        ))
    })
}
