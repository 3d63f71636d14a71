//! How the trait of an op is declared.

/// Declares the trait of an op for [`Device`](crate::tensor::Device)s, and implements it for the device that computes
/// nothing: ops write into memory that they are given, so there is nothing left to do. `provided` methods are made of the
/// others.
macro_rules! op {
    (
        $(#[$about:meta])*
        pub trait $Op:ident {
            $(
                $(#[$doc:meta])*
                fn $name:ident $(<$E:ident: $bound:ident>)? (&self $(, $arg:ident: $kind:ty)* $(,)?);
            )*
            $(provided { $($provided:tt)* })?
        }
    ) => {
        $(#[$about])*
        #[allow(clippy::too_many_arguments)]
        pub trait $Op: crate::tensor::Device {
            $(
                $(#[$doc])*
                fn $name $(<$E: $bound>)? (&self $(, $arg: $kind)*);
            )*
            $($($provided)*)?
        }

        #[allow(clippy::too_many_arguments)]
        impl<Stored: crate::tensor::Float> $Op for crate::tensor::DryRun<Stored> {
            $(
                fn $name $(<$E: $bound>)? (&self $(, $arg: $kind)*) {
                    let _ = ($($arg,)*);
                }
            )*
        }
    };
}

pub(super) use op;
