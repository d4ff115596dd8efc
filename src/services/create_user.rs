//! An account made by an operator: verified from the start, in any role.

use super::{
    audit,
    error::{Overloaded, Unavailable},
    events::Event,
    identifier::{Identifier, InvalidIdentifier},
    imported_hashes::{self, Refused},
    judge_password::{JudgeError, judge_password},
    model::{AuthProvider, Caller, Role, User, UserId},
    outbox,
    passwords::{HashAs, Password},
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
    /// What they sign in with.
    pub password: Credential,
    /// Given name, `""` when unknown.
    pub first_name: String,
    /// Family name, `""` when unknown.
    pub last_name: String,
}

/// What a new account's owner signs in with.
#[derive(Debug)]
pub enum Credential {
    /// Under the same rules as everybody's.
    Password(Password),
    /// A hash as Django stores it; it is replaced at the first sign-in.
    Imported(String),
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
    /// The hash is none of Django's, or asks for too much.
    #[error("the password hash is refused: {0}")]
    Hash(#[from] Refused),
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

impl From<JudgeError> for CreateUserError {
    fn from(error: JudgeError) -> Self {
        match error {
            JudgeError::Overloaded(error) => Self::Overloaded(error),
            JudgeError::Unavailable(error) => Self::Unavailable(error),
        }
    }
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
    let (hash, cost) = match request.password {
        Credential::Password(password) => {
            let broken = judge_password(ports, &password, &personal).await?;
            if !broken.is_empty() {
                return Err(CreateUserError::Password(broken.join(" ")));
            }
            (Some(ports.hash_password(password, HashAs::New(ports.random())).await?), None)
        }
        Credential::Imported(hash) => {
            let cost = imported_hashes::parse(&hash)?.cost();
            // Without a cost no password fits it, which is what no hash says too.
            (cost.map(|_| hash), cost)
        }
    };
    let now = ports.now();
    let user = User {
        auth_provider: if email.is_some() { AuthProvider::Email } else { AuthProvider::Phone },
        email: email.map(|email| email.as_str().to_owned()),
        phone: phone.map(|phone| phone.as_str().to_owned()),
        password_hash: hash,
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
            if let Some(cost) = cost {
                let work = i64::try_from(cost.work).unwrap_or(i64::MAX);
                store.note_imported_hash(&cost.scheme.to_string(), work).await?;
            }
            store.record(&audit::event(ports, "create_user", caller).of_user(user.id)).await?;
            store.enqueue(&outbox::event(ports, &Event::UserRegistered { user_id: user.id })).await?;
            Ok(user.id)
        })
        .await
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::services::{
        login::{Login, login},
        memory::{ADDRESS, NUMBER, PASSWORD, World, caller, request},
        run::run,
    };

    // Made by Django 1.11, of `correct horse battery`.
    const IMPORTED: &str = "pbkdf2_sha1$1$BuF1JYLlqHJg$cWdADCQK3QzciYAJpbJaNi4pShM=";

    fn wanted(email: Option<&str>, phone: Option<&str>, password: Credential) -> CreateUser {
        CreateUser {
            email: email.map(str::to_owned),
            phone: phone.map(str::to_owned),
            role: Role::Staff,
            password,
            first_name: "Ada".into(),
            last_name: "Lovelace".into(),
        }
    }

    fn create(world: &World, email: Option<&str>, phone: Option<&str>) -> Result<UserId, CreateUserError> {
        run(create_user(world, &caller(), wanted(email, phone, Credential::Password(Password::new(PASSWORD)))))
    }

    fn import(world: &World, email: &str, hash: &str) -> Result<UserId, CreateUserError> {
        run(create_user(world, &caller(), wanted(Some(email), None, Credential::Imported(hash.to_owned()))))
    }

    fn enters(world: &World, who: &str, password: &str) -> bool {
        let wanted = json!({ "email_or_phone": who, "password": password });
        run(login(world, &caller(), request::<Login>(wanted))).is_ok()
    }

    #[test]
    fn an_account_is_verified_and_can_sign_in_by_either_identifier() {
        let world = World::new();
        let id = create(&world, Some("Ada@Example.ORG"), Some("0803 123 4567")).unwrap();
        let ada = world.users().remove(0);
        assert_eq!((ada.id, ada.role, ada.auth_provider), (id, Role::Staff, AuthProvider::Email));
        assert_eq!((ada.email.as_deref(), ada.phone.as_deref()), (Some("Ada@example.org"), Some(NUMBER)));
        assert!(ada.is_verified && ada.is_active);
        assert!(enters(&world, ADDRESS, PASSWORD) && enters(&world, NUMBER, PASSWORD));
        assert_eq!(world.audited().first(), Some(&("create_user", "")));
        assert_eq!(world.events().first().unwrap(), "UserRegistered");
        let phone_only = World::new();
        create(&phone_only, None, Some(NUMBER)).unwrap();
        assert_eq!(phone_only.users()[0].auth_provider, AuthProvider::Phone);
    }

    #[test]
    fn what_identifies_nobody_is_refused() {
        let world = World::new();
        assert!(matches!(create(&world, None, None), Err(CreateUserError::NoIdentifier)));
        assert!(matches!(create(&world, Some("ada@"), None), Err(CreateUserError::Identifier(_))));
        assert!(matches!(create(&world, Some(ADDRESS), Some("12")), Err(CreateUserError::Identifier(_))));
        assert!(world.users().is_empty() && world.hashes() == 0);
    }

    #[test]
    fn a_taken_identifier_leaves_no_trace() {
        let world = World::with_ada();
        let (entries, audited) = (world.entries(), world.audited());
        for (email, phone) in
            [(Some("ADA@example.org"), None), (None, Some(NUMBER)), (Some("b@example.org"), Some(NUMBER))]
        {
            assert!(matches!(create(&world, email, phone), Err(CreateUserError::Taken)));
        }
        assert!(matches!(import(&world, ADDRESS, IMPORTED), Err(CreateUserError::Taken)));
        assert_eq!((world.users().len(), world.entries(), world.audited()), (1, entries, audited));
        assert_eq!(world.imported(), []);
    }

    #[test]
    fn an_operators_password_obeys_the_same_rules() {
        let world = World::new();
        for (password, word) in [("abc", "too short"), ("password", "too common"), ("Lovelace-99", "similar")] {
            let credential = Credential::Password(Password::new(password));
            let refused = run(create_user(&world, &caller(), wanted(Some(ADDRESS), None, credential)));
            let Err(CreateUserError::Password(sentences)) = refused else { panic!("{password} was taken") };
            assert!(sentences.contains(word), "{sentences}");
        }
        assert!(world.users().is_empty() && world.hashes() == 0);
    }

    #[test]
    fn an_imported_hash_is_kept_noted_and_replaced_at_the_first_sign_in() {
        let world = World::new();
        import(&world, ADDRESS, IMPORTED).unwrap();
        assert_eq!(world.users()[0].password_hash.as_deref(), Some(IMPORTED));
        assert_eq!(world.imported(), [("pbkdf2_sha1".to_owned(), 1)]);
        assert_eq!(world.hashes(), 0);
        assert!(!enters(&world, ADDRESS, "correct horse"));
        assert_eq!(world.users()[0].password_hash.as_deref(), Some(IMPORTED), "by a right password only");
        assert!(enters(&world, ADDRESS, "correct horse battery"));
        let replaced = world.users()[0].password_hash.clone().unwrap();
        assert!(replaced.starts_with("$argon2id$"), "{replaced}");
        assert!(enters(&world, ADDRESS, "correct horse battery"));
        assert_eq!(world.users()[0].password_hash.as_deref(), Some(replaced.as_str()));
    }

    #[test]
    fn the_greatest_cost_of_a_scheme_is_kept() {
        let world = World::new();
        for (n, iterations) in [5, 900, 30].into_iter().enumerate() {
            let hash = IMPORTED.replace("$1$", &format!("${iterations}$"));
            import(&world, &format!("user{n}@example.org"), &hash).unwrap();
        }
        assert_eq!(world.imported(), [("pbkdf2_sha1".to_owned(), 900)]);
    }

    #[test]
    fn an_unusable_hash_is_none_and_costs_nobody_anything() {
        let world = World::new();
        import(&world, ADDRESS, "!8vBnIvsAbcdefgh").unwrap();
        assert_eq!(world.users()[0].password_hash, None);
        assert_eq!(world.imported(), []);
        for password in ["!8vBnIvsAbcdefgh", "!", PASSWORD] {
            assert!(!enters(&world, ADDRESS, password));
        }
    }

    #[test]
    fn a_hash_that_could_not_be_verified_is_refused() {
        let world = World::new();
        for (hash, why) in [
            ("", Refused::Unknown),
            ("md5$a$b", Refused::Unknown),
            ("violet-Kettle-93", Refused::Unknown),
            ("pbkdf2_sha1$1$salt", Refused::Malformed),
            ("pbkdf2_sha256$999999999$salt$cWdADCQK3QzciYAJpbJaNi4pShM=", Refused::TooCostly),
        ] {
            assert!(
                matches!(import(&world, ADDRESS, hash), Err(CreateUserError::Hash(refused)) if refused == why),
                "{hash}"
            );
        }
        assert!(world.users().is_empty());
        assert_eq!(world.imported(), []);
    }

    #[test]
    fn what_fails_half_way_leaves_no_trace() {
        let world = World::new();
        world.fail_commits(true);
        assert!(matches!(import(&world, ADDRESS, IMPORTED), Err(CreateUserError::Unavailable(_))));
        assert!(world.users().is_empty() && world.audited().is_empty());
        assert_eq!(world.imported(), []);
    }
}
