//! Agreement: an error of one rank is one of all, and is said once.

use anyhow::{bail, Error, Result};
use tch::Tensor;

use super::rank::{Phase, Ranks};
use crate::one_line::one_line;

/// Bytes of an error that others hear.
const HEARD: usize = 2000;

/// An error that another rank prints: this one only ends.
#[derive(Debug)]
pub struct SaidElsewhere;

impl std::fmt::Display for SaidElsewhere {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("another rank says what is wrong")
    }
}

impl std::error::Error for SaidElsewhere {}

impl Ranks {
    /// The value that this rank has prepared, once all ranks could prepare.
    ///
    /// # Errors
    /// On all ranks, if one could not: that rank has its own error, or [`SaidElsewhere`] if a lower one has the same.
    pub fn agree<T>(&self, prepared: Result<T>) -> Result<T> {
        if self.are_one() {
            return prepared;
        }
        let own = prepared.as_ref().err().map(|error| shortened(&one_line(error)));
        let errors = self.errors(own.as_deref().unwrap_or_default());
        let errors = match (errors, prepared) {
            (Ok(errors), prepared) if errors.iter().all(String::is_empty) => return prepared,
            (Ok(errors), prepared) => {
                self.set(Phase::Failed);
                (errors, prepared)
            }
            // This one's own error says more than that others are gone.
            (Err(_), Err(own)) => {
                self.set(Phase::Failed);
                return Err(own);
            }
            (Err(error), Ok(_)) => {
                self.set(Phase::Failed);
                return Err(error);
            }
        };
        let (errors, prepared) = errors;
        let first = errors.iter().position(|error| !error.is_empty()).unwrap_or_default();
        let said = errors.iter().position(|error| Some(error) == own.as_ref());
        match prepared {
            Err(_) if said.is_some_and(|said| said < self.rank()) => Err(SaidElsewhere.into()),
            Err(error) => Err(error),
            Ok(_) => bail!("stopped, since rank {first} failed: {}", errors[first]),
        }
    }

    /// The error of a rank that could not prepare, after telling the others, if they wait to hear of it.
    pub fn failed(&self, error: Error) -> Error {
        let told = if self.phase() == Phase::Preparing {
            self.agree::<()>(Err(error))
        } else {
            Err(error)
        };
        let error = told.err().unwrap_or_else(|| SaidElsewhere.into());
        if self.are_one() || error.is::<SaidElsewhere>() {
            return error;
        }
        self.named(error)
    }

    /// The error of each rank, or nothing.
    fn errors(&self, own: &str) -> Result<Vec<String>> {
        let mut all = vec![0_u8; self.size() * HEARD];
        all[self.rank() * HEARD..][..own.len()].copy_from_slice(own.as_bytes());
        let all = Vec::<u8>::try_from(self.summed(Tensor::f_from_slice(&all)?)?)?;
        let text = |bytes: &[u8]| {
            let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
            String::from_utf8_lossy(&bytes[..end]).into_owned()
        };
        Ok(all.chunks(HEARD).map(text).collect())
    }
}

/// As much of a text as others hear, without zeros.
fn shortened(text: &str) -> String {
    let mut text = text.replace('\0', "");
    while text.len() > HEARD {
        text.pop();
    }
    text
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn an_error_of_a_process_without_others_names_no_rank() {
        assert_eq!(Ranks::alone().failed(anyhow!("bad data")).to_string(), "bad data");
    }
}
