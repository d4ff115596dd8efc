//! Sets a new password with the token of a link or with a code (contract §2). It signs nobody in.

use garde::Validate;
use serde::Deserialize;

use super::{
    audit,
    codes::{self, Proof, Purpose},
    error::{Overloaded, Unavailable},
    fields::{
        Exact, FieldErrors, NON_FIELD, Text, at_most, field_error, nullable, present, required, required_password,
    },
    identifier::Identifier,
    judge_password::{JudgeError, judge_password},
    model::{Caller, User},
    new_password::{self, NewPasswordError, Occasion},
    passwords::{HashAs, Password},
    ports::{Audit as _, Ports, Users as _},
    problem::Problem,
    request_reset::may_reset,
    reset_flow,
};

/// `POST /password/reset-confirm/`: `uidb64` and `token`, or `email_or_phone` and `otp`.
#[derive(Debug, Deserialize, Validate)]
pub struct ConfirmReset {
    #[serde(default, deserialize_with = "nullable")]
    #[garde(skip)]
    uidb64: Option<Exact>,
    #[serde(default, deserialize_with = "nullable")]
    #[garde(skip)]
    token: Option<Exact>,
    #[serde(default, deserialize_with = "nullable")]
    #[garde(custom(at_most::<254>))]
    email_or_phone: Option<Text>,
    #[serde(default, deserialize_with = "nullable")]
    #[garde(custom(at_most::<32>))]
    otp: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    #[garde(custom(required_password))]
    new_password: Option<Password>,
}

/// `POST /password/reset-confirm/{uidb64}/{token}/`
#[derive(Debug, Deserialize, Validate)]
pub struct ConfirmResetByLink {
    #[serde(default, deserialize_with = "present")]
    #[garde(custom(required_password))]
    password: Option<Password>,
    #[serde(default, deserialize_with = "present")]
    #[garde(custom(required_password))]
    password2: Option<Password>,
}

/// `POST /password/reset-phone-confirm/`
#[derive(Debug, Deserialize, Validate)]
pub struct ConfirmResetByPhone {
    #[serde(default, deserialize_with = "present")]
    #[garde(custom(required), custom(at_most::<254>))]
    phone: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    #[garde(custom(required), custom(at_most::<32>))]
    otp: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    #[garde(custom(required_password))]
    new_password: Option<Password>,
    #[serde(default, deserialize_with = "present")]
    #[garde(custom(required_password))]
    new_password_confirm: Option<Password>,
}

/// A reset, in whichever form it was asked for.
#[derive(Debug)]
pub struct Reset {
    by: By,
    password: Password,
    // The field that the password came in, for what is wrong with it.
    field: &'static str,
}

#[derive(Debug)]
enum By {
    Link { uidb64: String, token: String },
    Code { identifier: Identifier, otp: String },
}

impl ConfirmReset {
    /// Reads which of the two forms it is.
    ///
    /// # Errors
    /// Sentences when it is neither or both, or the identifier is malformed.
    pub fn read<P: Ports>(self, ports: &P) -> Result<Reset, ConfirmResetError> {
        let exact = |text: Option<Exact>| text.map(|text| text.0).filter(|text| !text.trim().is_empty());
        let text = |text: Option<Text>| text.map(|text| text.0).filter(|text| !text.is_empty());
        let missing = |field: &str| ConfirmResetError::Invalid(field_error(field, "This field is required."));
        let by = match (exact(self.uidb64), exact(self.token), text(self.email_or_phone), text(self.otp)) {
            (Some(uidb64), Some(token), None, None) => By::Link { uidb64, token },
            (None, None, Some(who), Some(otp)) => {
                let region = &ports.policy().default_region;
                let identifier = Identifier::email_or_phone(&who, region)
                    .map_err(|error| ConfirmResetError::Invalid(field_error("email_or_phone", error.to_string())))?;
                By::Code { identifier, otp }
            }
            (Some(_), None, None, None) => return Err(missing("token")),
            (None, Some(_), None, None) => return Err(missing("uidb64")),
            (None, None, Some(_), None) => return Err(missing("otp")),
            (None, None, None, Some(_)) => return Err(missing("email_or_phone")),
            _ => {
                let sentence = "Give either uidb64 and token, or email_or_phone and otp.";
                return Err(ConfirmResetError::Invalid(field_error(NON_FIELD, sentence)));
            }
        };
        Ok(Reset { by, password: self.new_password.unwrap_or_else(|| Password::new("")), field: "new_password" })
    }
}

impl ConfirmResetByLink {
    /// With what the path says.
    ///
    /// # Errors
    /// A sentence when the two passwords differ.
    pub fn read(self, uidb64: &str, token: &str) -> Result<Reset, ConfirmResetError> {
        let by = By::Link { uidb64: uidb64.to_owned(), token: token.to_owned() };
        let password = twice(self.password, self.password2, "password2")?;
        Ok(Reset { by, password, field: "password" })
    }
}

impl ConfirmResetByPhone {
    /// Reads the number.
    ///
    /// # Errors
    /// Sentences when it is malformed, or the two passwords differ.
    pub fn read<P: Ports>(self, ports: &P) -> Result<Reset, ConfirmResetError> {
        let typed = self.phone.map(|text| text.0).unwrap_or_default();
        let identifier = Identifier::phone(&typed, &ports.policy().default_region)
            .map_err(|error| ConfirmResetError::Invalid(field_error("phone", error.to_string())))?;
        let by = By::Code { identifier, otp: self.otp.map(|otp| otp.0).unwrap_or_default() };
        let password = twice(self.new_password, self.new_password_confirm, "new_password_confirm")?;
        Ok(Reset { by, password, field: "new_password" })
    }
}

fn twice(one: Option<Password>, again: Option<Password>, field: &str) -> Result<Password, ConfirmResetError> {
    match (one, again) {
        (Some(one), Some(again)) if one.expose() == again.expose() => Ok(one),
        _ => Err(ConfirmResetError::Invalid(field_error(field, "The two passwords do not match."))),
    }
}

/// Why there is no new password.
#[derive(Debug, thiserror::Error)]
pub enum ConfirmResetError {
    /// Fields are missing or wrong, or the new password breaks rules.
    #[error("some fields are not valid")]
    Invalid(FieldErrors),
    /// The link is of nobody, was used, ran out, or something changed since.
    #[error("the reset link is not valid")]
    InvalidToken,
    /// No such code: wrong, spent, run out, guessed at too often, or no such account.
    #[error("the code is wrong")]
    WrongCode,
    /// Too many hashes are being made.
    #[error(transparent)]
    Overloaded(#[from] Overloaded),
    /// Something outside did not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl From<JudgeError> for ConfirmResetError {
    fn from(error: JudgeError) -> Self {
        match error {
            JudgeError::Overloaded(error) => Self::Overloaded(error),
            JudgeError::Unavailable(error) => Self::Unavailable(error),
        }
    }
}

impl From<ConfirmResetError> for Problem {
    fn from(error: ConfirmResetError) -> Self {
        match error {
            ConfirmResetError::Invalid(errors) => Self::invalid(errors),
            ConfirmResetError::InvalidToken => Self {
                errors: Some(field_error("token", "The link is not valid or has expired.")),
                ..Self::new(400, "invalid_token", "The link is not valid or has expired. Please ask for a new one.")
            },
            ConfirmResetError::WrongCode => Self {
                errors: Some(field_error("otp", "The code is wrong or has expired.")),
                ..Self::new(400, "invalid_otp", "The code is wrong or has expired.")
            },
            ConfirmResetError::Overloaded(error) => error.into(),
            ConfirmResetError::Unavailable(error) => error.into(),
        }
    }
}

/// Sets the password. What is wrong with it is told, and the link or code left unspent, only to who
/// has proven themselves: likeness to a person's own data is about that person.
///
/// # Errors
/// [`ConfirmResetError`].
pub async fn confirm_reset<P: Ports>(ports: &P, caller: &Caller, reset: Reset) -> Result<(), ConfirmResetError> {
    let Reset { by, password, field } = reset;
    // Never hashed, and nothing is looked up for it (ABUSE 35).
    if password.expose().chars().count() > ports.policy().passwords.max_length {
        let broken = judge_password(ports, &password, &[]).await?;
        return Err(ConfirmResetError::Invalid([(field.to_owned(), broken)].into()));
    }
    let (user, proof) = match &by {
        By::Link { uidb64, token } => prove_by_link(ports, uidb64, token).await?,
        By::Code { identifier, otp } => prove_by_code(ports, identifier, otp).await?,
    };
    let (Some(user), Some(proof)) = (&user, proof) else {
        return refuse(ports, caller, user.as_ref(), &by).await;
    };
    let personal = personal(user);
    let broken = judge_password(ports, &password, &personal).await?;
    if !broken.is_empty() {
        return Err(ConfirmResetError::Invalid([(field.to_owned(), broken)].into()));
    }
    let hash = ports.hash_password(password, HashAs::New(ports.random())).await?;
    if !codes::spend(ports, &proof).await? {
        return refuse(ports, caller, Some(user), &by).await;
    }
    match new_password::set(ports, caller, user, &hash, Occasion::Reset).await {
        Ok(()) => Ok(()),
        Err(NewPasswordError::Changed) => refuse(ports, caller, Some(user), &by).await,
        Err(NewPasswordError::Unavailable(error)) => {
            // Nothing was changed, so the person may try again; should this fail too, they ask anew.
            let _ = codes::give_back(ports, &proof).await;
            Err(error.into())
        }
    }
}

/// What is known of a person, for judging likeness.
pub fn personal(user: &User) -> Vec<&str> {
    let known = [user.email.as_deref(), user.phone.as_deref(), Some(&user.first_name), Some(&user.last_name)];
    known.into_iter().flatten().filter(|text| !text.is_empty()).collect()
}

type Proven = (Option<User>, Option<Proof>);

async fn prove_by_link<P: Ports>(ports: &P, uidb64: &str, token: &str) -> Result<Proven, Unavailable> {
    let Some(id) = reset_flow::read_uidb64(uidb64) else { return Ok((None, None)) };
    let user = ports.store().await?.user(id).await?.filter(may_reset);
    let nobody = User::new(id, String::new(), ports.now());
    let proof = reset_flow::check_token(ports, user.as_ref().unwrap_or(&nobody), token).await?;
    Ok((user, proof))
}

async fn prove_by_code<P: Ports>(ports: &P, identifier: &Identifier, otp: &str) -> Result<Proven, Unavailable> {
    let user = ports.store().await?.user_by_identifier(identifier).await?.filter(may_reset);
    // For nobody the same calls are made, with an id that has no code.
    let nobody = User::new(ports.keys().stand_in(&identifier.comparable()), String::new(), ports.now());
    let asked = user.as_ref().unwrap_or(&nobody);
    let proof = codes::guess(ports, asked.id, Purpose::PasswordReset, &reset_flow::binding(asked), otp).await?;
    Ok((user, proof))
}

async fn refuse<P: Ports>(ports: &P, caller: &Caller, user: Option<&User>, by: &By) -> Result<(), ConfirmResetError> {
    let event = audit::event(ports, "password_reset", caller);
    let event = match by {
        By::Code { identifier, .. } => event.with_identifier(ports, identifier),
        By::Link { .. } => event,
    };
    let event = user.map(|user| event.clone().of_user(user.id)).unwrap_or(event);
    let (reason, error) = match by {
        By::Link { .. } => ("invalid_token", ConfirmResetError::InvalidToken),
        By::Code { .. } => ("invalid_otp", ConfirmResetError::WrongCode),
    };
    ports.store().await?.record(&event.refused(reason)).await?;
    Err(error)
}
