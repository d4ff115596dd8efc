//! An account made by an operator: verified from the start, in any role.

use super::{
    audit,
    error::{Overloaded, Unavailable},
    events::Event,
    identifier::{Identifier, InvalidIdentifier},
    model::{AuthProvider, Caller, Role, User, UserId},
    outbox,
    passwords::{self, HashAs, Password},
    ports::{Audit as _, Inserted, Outbox as _, Ports, Users as _},
    register::public_id,
};

/// What the operator gives.
#[derive(Debug)]
pub struct CreateUser {
    /// An e-mail address, a phone number, or both.
    pub email: Option<String>,
    /// See `email`.
    pub phone: Option<String>,
    /// Any role.
    pub role: Role,
    /// Under the same rules as everybody's.
    pub password: Password,
    /// Given name, `""` when unknown.
    pub first_name: String,
    /// Family name, `""` when unknown.
    pub last_name: String,
}

/// Why there is no new account; `Display` is the sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum CreateUserError {
    /// Neither address nor number.
    #[error("an e-mail address or a phone number is needed")]
    NoIdentifier,
    /// The address or number is malformed.
    #[error(transparent)]
    Identifier(#[from] InvalidIdentifier),
    /// Every rule that the password breaks.
    #[error("the password is refused: {0}")]
    Password(String),
    /// The address or number has an account.
    #[error("a user with this e-mail address or phone number exists already")]
    Taken,
    /// Too many hashes are being made.
    #[error(transparent)]
    Overloaded(#[from] Overloaded),
    /// Something outside did not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Makes the account.
///
/// # Errors
/// [`CreateUserError`].
pub async fn create_user<P: Ports>(ports: &P, caller: &Caller, request: CreateUser) -> Result<UserId, CreateUserError> {
    let region = &ports.policy().default_region;
    let email = request.email.as_deref().map(Identifier::email).transpose()?;
    let phone = request.phone.as_deref().map(|typed| Identifier::phone(typed, region)).transpose()?;
    if email.is_none() && phone.is_none() {
        return Err(CreateUserError::NoIdentifier);
    }
    let mut personal = vec![request.first_name.as_str(), request.last_name.as_str()];
    personal.extend([&email, &phone].into_iter().flatten().map(Identifier::as_str));
    let mut broken = passwords::judge_form(&request.password, &personal, &ports.policy().passwords);
    let personal = personal.into_iter().map(str::to_owned).collect();
    if broken.is_empty() && ports.is_guessable(request.password.clone(), personal).await? {
        broken.push(passwords::GUESSABLE.to_owned());
    }
    if !broken.is_empty() {
        return Err(CreateUserError::Password(broken.join(" ")));
    }
    let hash = ports.hash_password(request.password, HashAs::New(ports.random())).await?;
    let now = ports.now();
    let user = User {
        auth_provider: if email.is_some() { AuthProvider::Email } else { AuthProvider::Phone },
        email: email.map(|email| email.as_str().to_owned()),
        phone: phone.map(|phone| phone.as_str().to_owned()),
        password_hash: Some(hash),
        role: request.role,
        is_verified: true,
        first_name: request.first_name,
        last_name: request.last_name,
        ..User::new(UserId(ports.new_id()), public_id(ports), now)
    };
    ports
        .transaction(async |store| {
            if store.insert_user(&user).await? == Inserted::Taken {
                return Err(CreateUserError::Taken);
            }
            store.record(&audit::event(ports, "create_user", caller).of_user(user.id)).await?;
            store.enqueue(&outbox::event(ports, &Event::UserRegistered { user_id: user.id })).await?;
            Ok(user.id)
        })
        .await
}
