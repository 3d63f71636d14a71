//! How the trait of an op is declared.

/// Declares the trait of an op for [`Device`](crate::tensor::Device)s, and implements it for the device that computes
/// nothing (ops write into memory that they are given, so there is nothing left to do) and for the one that computes
/// later. What is `prepared` is made once of what is known ahead, and passed to ops by reference; `provided` methods
/// are made of the others.
macro_rules! op {
    (
        $(#[$about:meta])*
        pub trait $Op:ident: $Base:ident {
            $(prepared {
                $(#[$about_prepared:meta])*
                type $Prepared:ident;
                $(#[$about_prepare:meta])*
                fn $prepare:ident(&self, $from:ident: $From:ty) -> _;
            })?
            $(
                $(#[$doc:meta])*
                fn $name:ident $(<$E:ident: $bound:ident>)? (&self $(, $arg:ident: $kind:ty)* $(,)?);
            )*
            $(provided { $($provided:tt)* })?
        }
    ) => {
        $(#[$about])*
        #[allow(clippy::too_many_arguments)]
        pub trait $Op: $Base {
            $(
                $(#[$about_prepared])*
                type $Prepared: Clone + std::fmt::Debug + Send + Sync + 'static;
                $(#[$about_prepare])*
                fn $prepare(&self, $from: $From) -> Self::$Prepared;
            )?
            $(
                $(#[$doc])*
                fn $name $(<$E: $bound>)? (&self $(, $arg: $kind)*);
            )*
            $($($provided)*)?
        }

        #[cfg(feature = "conformance")]
        #[allow(clippy::too_many_arguments)]
        impl<Inner> $Op for crate::tensor::queued::Queued<Inner>
        where
            Inner: $Op + crate::tensor::Device<Storage = crate::tensor::Host>,
        {
            $(
                type $Prepared = std::sync::Arc<Inner::$Prepared>;
                fn $prepare(&self, $from: $From) -> std::sync::Arc<Inner::$Prepared> {
                    std::sync::Arc::new(self.inner().$prepare($from))
                }
            )?
            $(
                fn $name $(<$E: $bound>)? (&self $(, $arg: $kind)*) {
                    use crate::tensor::queued::{Argument as _, Kept as _};

                    let mut issue = self.issue(stringify!($name));
                    $( let mut $arg = $arg.keep(&mut issue); )*
                    let inner = self.inner().clone();
                    issue.run(move || inner.$name($($arg.get()),*));
                }
            )*
        }

        #[allow(clippy::too_many_arguments)]
        impl<Stored: crate::tensor::Float> $Op for crate::tensor::DryRun<Stored> {
            $(
                type $Prepared = ();
                fn $prepare(&self, $from: $From) {
                    let _ = $from;
                }
            )?
            $(
                fn $name $(<$E: $bound>)? (&self $(, $arg: $kind)*) {
                    let _ = ($($arg,)*);
                }
            )*
        }
    };
}

pub(super) use op;

#[cfg(all(test, feature = "conformance"))]
mod tests;
